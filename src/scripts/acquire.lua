-- Grants the lock if nobody holds it, and says who holds it otherwise.
--
-- A request whose reply was lost may be sent again with the same owner token: it is recognised and
-- answered with the grant that it made, not with "held". The fence is the larger of the last fence
-- plus one and the server's clock in microseconds: it grows with every grant, also when the last one
-- was lost by eviction, restart or failover (a counter alone starts again and repeats).
--
-- KEYS[1] lock key
-- KEYS[2] fence key
-- ARGV[1] owner token, without ':'
-- ARGV[2] who asks: host, pid, start, version; shown to others, never compared
-- ARGV[3] TTL of the lock in ms
-- ARGV[4] TTL of the fence key in ms
-- Returns {1, value} when granted, {0, holder's value, remaining TTL in ms or -1} when held.
-- Cost: O(1), at most 7 commands.
local held = redis.call('GET', KEYS[1])
if held then
  if string.sub(held, 1, #ARGV[1] + 1) == ARGV[1] .. ':' then
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
    return {1, held}
  end
  return {0, held, redis.call('PTTL', KEYS[1])}
end
local time = redis.call('TIME')
local fence = tonumber(time[1]) * 1000000 + tonumber(time[2])
local last = redis.call('GET', KEYS[2])
if last then fence = math.max((tonumber(last) or 0) + 1, fence) end
fence = string.format('%.0f', fence)
-- PEXPIRE first: a script that has begun with a write which needs no memory may go on to SET
-- although the server is out of memory, which is when a sweep is wanted.
redis.call('PEXPIRE', KEYS[2], ARGV[4])
redis.call('SET', KEYS[2], fence, 'PX', ARGV[4])
local value = ARGV[1] .. ':' .. fence .. '|' .. ARGV[2]
redis.call('SET', KEYS[1], value, 'PX', ARGV[3])
return {1, value}
