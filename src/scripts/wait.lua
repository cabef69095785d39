-- Joins the line of waiters, or looks at the lock again from within it.
--
-- Sent together with a BLPOP on the baton, so that tickets and the server's own line have one order. A
-- lock that is free (expired, deleted by hand, given back by a program that knows no line) is put in
-- transit for the first in line: whoever looks, the order stays.
--
-- KEYS[1] lock key
-- KEYS[2] waiters
-- KEYS[3] baton
-- ARGV[1] who waits: "id|host|pid|program"
-- ARGV[2] value in transit, if it comes to that
-- ARGV[3] time to claim it in ms
-- ARGV[4] life of the line in ms, if nobody looks again
-- Returns {holder's value, remaining TTL in ms or -1, number of younger waiters, our ticket}.
-- Cost: O(log waiters), at most 13 commands.
local held = redis.call('GET', KEYS[1])
if not held then
  held = ARGV[2]
  redis.call('DEL', KEYS[3])
  redis.call('SET', KEYS[1], held, 'PX', ARGV[3])
  redis.call('RPUSH', KEYS[3], held)
  redis.call('PEXPIRE', KEYS[3], ARGV[3])
end
local ticket = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not ticket then
  local time = redis.call('TIME')
  -- A write that needs no memory: after it, ZADD may go on although the server has none left.
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
  local youngest = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
  ticket = tonumber(time[1]) * 1000000 + tonumber(time[2])
  ticket = string.format('%.0f', math.max(ticket, (tonumber(youngest[2]) or 0) + 1))
  redis.call('ZADD', KEYS[2], ticket, ARGV[1])
end
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {held, redis.call('PTTL', KEYS[1]), redis.call('ZREVRANK', KEYS[2], ARGV[1]), ticket}
