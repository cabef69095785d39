-- Joins the line of waiters, or looks at the lock again from within it.
--
-- Sent together with a BLPOP on the baton, so that tickets and the server's own line have one order. A
-- lock that is free (expired, deleted by hand, given back by a program that knows no line) is put in
-- transit for the first in line: whoever looks, the order stays.
--
-- A waiter that looks may have lost its place without knowing it: its ticket is gone (whoever is served
-- takes all older tickets away), or a baton lies in its list, on which nobody blocks then, for an answer was
-- lost. It must join anew.
--
-- KEYS[1] lock key
-- KEYS[2] waiters
-- KEYS[3] baton
-- ARGV[1] who waits: "id|host|pid|program"
-- ARGV[2] value in transit, if it comes to that
-- ARGV[3] time to claim it in ms
-- ARGV[4] life of the line in ms, if nobody looks again; a look renews it when a quarter is over
-- ARGV[5] '1' to join, '0' to look again
-- Returns {holder's value, remaining TTL in ms or -1, waiters before us, waiters behind us, our ticket, or '' of
--   who stands in line no more}.
-- Cost: O(log waiters), 6 to 8 commands when the lock is held, at most 11; out of memory 2 more.
--
-- Both keys are read after the last write to them: a write forgets who is to be told of the next change
-- (CLIENT TRACKING), a read remembers.
local held = redis.call('GET', KEYS[1])
local lost = held and ARGV[5] == '0' and redis.call('LINDEX', KEYS[3], 0) == held
if not held then
  held = ARGV[2]
  redis.call('DEL', KEYS[3])
  redis.call('SET', KEYS[1], held, 'PX', ARGV[3])
  redis.call('LPUSH', KEYS[3], held)
  redis.call('PEXPIRE', KEYS[3], ARGV[3])
end
local ticket, younger = '', 0
if ARGV[5] == '1' then
  local time = redis.call('TIME')
  ticket = string.format('%.0f', tonumber(time[1]) * 1000000 + tonumber(time[2]))
  if type(redis.pcall('ZADD', KEYS[2], ticket, ARGV[1])) == 'table' then
    -- Out of memory: after a write that needs none, a script may go on.
    redis.call('PEXPIRE', KEYS[2], ARGV[4])
    redis.call('ZADD', KEYS[2], ticket, ARGV[1])
  end
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
elseif not lost then
  -- Others are told of every write.
  if redis.call('PTTL', KEYS[2]) < ARGV[4] * 3 / 4 then redis.call('PEXPIRE', KEYS[2], ARGV[4]) end
  ticket = redis.call('ZSCORE', KEYS[2], ARGV[1]) or ''
  younger = redis.call('ZREVRANK', KEYS[2], ARGV[1]) or 0
end
local older = ticket == '' and 0 or redis.call('ZCARD', KEYS[2]) - 1 - younger
return {held, redis.call('PTTL', KEYS[1]), older, younger, ticket}
