-- Deletes entries of an aged tag: the first half of an invalidation as the framework does it. Their
-- references go after them, as stale ones do: a reference never goes before its entry. The tag itself is
-- not written here, for that would make it look used while parts of it are still to come.
-- Nothing happens unless the lock still holds our value: a deposed sweeper deletes nothing.
--
-- KEYS[1] lock key
-- KEYS[2] tag key
-- KEYS[3..] entry keys of its members
-- ARGV[1] our value of the lock
-- ARGV[2] seconds for which the tag must have been idle, '' to not ask
-- Returns {'FENCED'}, {-1} (used since, left alone), {-2} (another type, left alone), or {entries
--   deleted}; none if the tag is gone.
-- Cost: O(entries), 4 commands. Callers keep the entries of one call below 256.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'FENCED'} end
local idle = tonumber(ARGV[2])
if idle then
  local seen = redis.pcall('OBJECT', 'IDLETIME', KEYS[2])
  -- Where no idle time is kept any more, nobody can tell; more than 180 days is what a clock set back looks like.
  if seen and (type(seen) ~= 'number' or seen < idle or seen > 15552000) then return {-1} end
end
local kind = redis.call('TYPE', KEYS[2]).ok
if kind == 'none' then return {0} end
if kind ~= 'set' then return {-2} end
return {redis.call('UNLINK', unpack(KEYS, 3))}
