-- Gives the lock more time, if it is still ours. Never creates it.
--
-- KEYS[1] lock key
-- ARGV[1] our value
-- ARGV[2] new TTL in ms, at least 1
-- ARGV[3] '1' to set exactly this TTL, '0' never to shorten what is left (of a key without a TTL, all)
-- Returns {1, TTL in ms} when it is ours, {0, '1' if somebody else has it or '0' if nobody} when not.
-- Cost: O(1), at most 3 commands.
local held = redis.call('GET', KEYS[1])
if held ~= ARGV[1] then return {0, held and '1' or '0'} end
local left = redis.call('PTTL', KEYS[1])
local ttl = tonumber(ARGV[2])
if ARGV[3] == '0' and (left >= ttl or left < 0) then return {1, math.max(left, ttl)} end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {1, ttl}
