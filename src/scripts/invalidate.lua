-- Deletes entries of an aged tag and their references, as the framework's own invalidation does:
-- entries first, so that a reference never goes before its entry.
-- Nothing happens unless the lock still holds our value: a deposed sweeper deletes nothing.
--
-- KEYS[1] lock key
-- KEYS[2] tag key
-- KEYS[3..] entry keys of its members
-- ARGV[1] our value of the lock
-- ARGV[2] seconds for which the tag must have been idle, '' to not ask
-- ARGV[3..] the members, one per entry key
-- Returns {'FENCED'}, {-1} (used since, left alone), {-2} (another type, left alone), or
--   {1 if the tag is gone else 0, references removed, entries deleted}.
-- Cost: O(members), 5 commands. Callers keep the members of one call below 256.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'FENCED'} end
local idle = tonumber(ARGV[2])
if idle then
  local seen = redis.pcall('OBJECT', 'IDLETIME', KEYS[2])
  if type(seen) == 'number' and seen < idle then return {-1} end
end
local kind = redis.call('TYPE', KEYS[2]).ok
if kind == 'none' then return {1, 0, 0} end
if kind ~= 'set' then return {-2} end
local entries = redis.call('UNLINK', unpack(KEYS, 3))
local references = redis.call('SREM', KEYS[2], unpack(ARGV, 3))
return {redis.call('EXISTS', KEYS[2]) == 0 and 1 or 0, references, entries}
