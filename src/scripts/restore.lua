-- Puts references back whose entries exist after all: the verify step of a sweep.
--
-- Never fenced: adding a reference to a live entry is right whoever holds the lock. An entry whose
-- reference was gone for a moment may have missed an invalidation in that moment; strict sweeps delete it
-- instead, and only while the lock is theirs.
--
-- KEYS[1] tag key
-- KEYS[2] lock key
-- KEYS[3..] entry keys of the members, all first names and then, with two names, all second names
-- ARGV[1] our value of the lock to delete the entries, '' to put their references back
-- ARGV[2..] the members
-- Returns {references put back, entries deleted}, or {-2, 0} when the tag key holds another type now.
-- Cost: O(members), at most 4 commands per member. Callers keep the members of one call below 256.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'set' and kind ~= 'none' then return {-2, 0} end
local n, back, entries = #ARGV - 1, {}, {}
for i = 1, n do
  local at = 2 + i
  local alive = redis.call('EXISTS', KEYS[at]) == 1
  if not alive and #KEYS > n + 2 then
    at = at + n
    alive = redis.call('EXISTS', KEYS[at]) == 1
  end
  if alive and redis.call('SISMEMBER', KEYS[1], ARGV[1 + i]) == 0 then
    back[#back + 1] = ARGV[1 + i]
    entries[#entries + 1] = KEYS[at]
  end
end
if #back == 0 then return {0, 0} end
if ARGV[1] ~= '' and redis.call('GET', KEYS[2]) == ARGV[1] then
  return {0, redis.call('UNLINK', unpack(entries))}
end
-- Removes nothing, for they are absent; but a script that has begun with a write which needs no
-- memory may go on to SADD although the server is out of memory.
redis.call('SREM', KEYS[1], back[1])
return {redis.call('SADD', KEYS[1], unpack(back)), 0}
