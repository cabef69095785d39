-- Puts references back whose entries exist after all: the verify step of a sweep.
--
-- Never fenced: adding a reference to a live entry is right whoever holds the lock.
--
-- KEYS[1] tag key
-- KEYS[2..] entry keys of the members, all first names and then, with two names, all second names
-- ARGV[1..] the members
-- Returns the number of references put back, or -2 when the tag key holds another type now.
-- Cost: O(members), at most 3 commands per member. Callers keep the members of one call below 256.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'set' and kind ~= 'none' then return -2 end
local n, back = #ARGV, {}
for i = 1, n do
  local alive = redis.call('EXISTS', KEYS[1 + i]) == 1
  if not alive and #KEYS > n + 1 then alive = redis.call('EXISTS', KEYS[1 + n + i]) == 1 end
  if alive and redis.call('SISMEMBER', KEYS[1], ARGV[i]) == 0 then back[#back + 1] = ARGV[i] end
end
if #back == 0 then return 0 end
-- Removes nothing, for they are absent; but a script that has begun with a write which needs no
-- memory may go on to SADD although the server is out of memory.
redis.call('SREM', KEYS[1], back[1])
return redis.call('SADD', KEYS[1], unpack(back))
