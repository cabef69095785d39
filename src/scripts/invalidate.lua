-- Deletes entries of an aged tag and their references, as the framework's own invalidation does:
-- entries first, so that a reference never goes before its entry.
-- Nothing happens unless the lock still holds our value: a deposed sweeper deletes nothing.
--
-- KEYS[1] lock key
-- KEYS[2] quarantine, a hash
-- KEYS[3] tag key
-- KEYS[4..] entry keys of its members
-- ARGV[1] our value of the lock
-- ARGV[2] seconds for which the tag must have been idle, '' to not ask
-- ARGV[3] field of the quarantine, '' to note nothing
-- ARGV[4] what is noted there
-- ARGV[5] TTL of the quarantine in ms
-- ARGV[6..] the members, one per entry key
-- Returns {'FENCED'}, {-1} (used since, left alone), {-2} (another type, left alone), or
--   {1 if the tag is gone else 0, references removed, entries deleted}.
-- Cost: O(members), 5 commands, 7 with a quarantine. Callers keep the members of one call below 256.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'FENCED'} end
local idle = tonumber(ARGV[2])
if idle then
  local seen = redis.pcall('OBJECT', 'IDLETIME', KEYS[3])
  if type(seen) == 'number' and seen < idle then return {-1} end
end
local kind = redis.call('TYPE', KEYS[3]).ok
if kind == 'none' then return {1, 0, 0} end
if kind ~= 'set' then return {-2} end
local entries = redis.call('UNLINK', unpack(KEYS, 4))
local references = redis.call('SREM', KEYS[3], unpack(ARGV, 6))
if references > 0 and ARGV[3] ~= '' then
  redis.pcall('HSET', KEYS[2], ARGV[3], ARGV[4])
  redis.pcall('PEXPIRE', KEYS[2], ARGV[5])
end
return {redis.call('EXISTS', KEYS[3]) == 0 and 1 or 0, references, entries}
