-- Takes the lock away from its holder, if it is the one that was meant, and hands it to the first
-- waiter.
--
-- KEYS[1] lock key
-- KEYS[2] fence key
-- KEYS[3] waiters
-- KEYS[4] baton
-- KEYS[5] statistics
-- KEYS[6] runs: says so there, for the holder to find
-- ARGV[1] fence of the grant that is meant, or '' for whoever holds it
-- ARGV[2] value in transit: a fresh token and ':0||'
-- ARGV[3] time to claim it in ms
-- ARGV[4] TTL of the fence key in ms, and of statistics and runs
-- Returns {1, value it had, TTL it had left in ms}, {0, value of another grant, its TTL}, or {0} when nobody
--   holds it; a TTL of -1 is none.
-- Cost: O(1), at most 14 commands.
local held = redis.call('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
local fence, who = string.match(held or '', '^[^:]*:(%d+)|(.*)$')
if not held or (ARGV[1] ~= '' and fence ~= ARGV[1]) then
  -- A replica, which knows of the past only, refuses what might write, as this does not.
  local told = redis.pcall('GETEX', KEYS[1])
  if type(told) == 'table' and string.find(told.err, 'READONLY') then return told end
  return held and {0, held, left} or {0}
end
redis.call('DEL', KEYS[1], KEYS[4])
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  redis.call('RPUSH', KEYS[4], ARGV[2])
  redis.call('PEXPIRE', KEYS[4], ARGV[3])
end
local grant = redis.pcall('GET', KEYS[2])
local closed = fence and type(grant) == 'string' and string.sub(grant, 1, #fence + 1) == fence .. '|'
-- What was given back already, and only stays taken for a while, is nobody's loss; nor is what is not ours, such as a
-- fence that nobody could count on from.
if fence and fence ~= '0' and not closed and tonumber(fence) < 2 ^ 53 - 1 then
  redis.call('SET', KEYS[2], fence .. '|0', 'PX', ARGV[4])
  redis.pcall('LPUSH', KEYS[6], fence .. '|' .. who .. '|-2')
  redis.pcall('LTRIM', KEYS[6], 0, 9)
  redis.pcall('PEXPIRE', KEYS[6], ARGV[4])
  redis.pcall('HINCRBY', KEYS[5], 'lost.forced', 1)
  redis.pcall('PEXPIRE', KEYS[5], ARGV[4])
end
return {1, held, left}
