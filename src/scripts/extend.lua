-- Gives the lock more time, if it is still ours. Never creates it.
--
-- KEYS[1] lock key
-- KEYS[2] fence key, with ARGV[4]: a TTL longer than that of the grant is kept there, for whoever looks
-- ARGV[1] our value
-- ARGV[2] new TTL in ms, at least 1
-- ARGV[3] '1' to set exactly this TTL, '0' never to shorten what is left (of a key without a TTL, all)
-- ARGV[4] TTL of the fence key in ms
-- Returns {1, TTL in ms} when it is ours, {0, '1' if somebody else has it or '0' if nobody} when not.
-- Cost: O(1), at most 3 commands, 5 with a fence key.
local held = redis.call('GET', KEYS[1])
if held ~= ARGV[1] then
  -- A replica, which knows of the past only, refuses what might write, as this does not.
  local told = redis.pcall('GETEX', KEYS[1])
  if type(told) == 'table' and string.find(told.err, 'READONLY') then return told end
  return {0, held and '1' or '0'}
end
local left = redis.call('PTTL', KEYS[1])
local ttl = tonumber(ARGV[2])
if ARGV[3] == '0' and (left >= ttl or left < 0) then
  -- A write that changes nothing: a replica, which may not know yet what became of the lock, refuses it.
  if left > 0 then redis.call('PEXPIRE', KEYS[1], left) end
  return {1, math.max(left, ttl)}
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local grant = KEYS[2] and redis.pcall('GET', KEYS[2])
local open, known = string.match(type(grant) == 'string' and grant or '', '^(%d+%+.*|)(%d+)$')
if open and tonumber(known) < ttl then
  redis.pcall('SET', KEYS[2], open .. ARGV[2], 'PX', ARGV[4])
end
return {1, ttl}
