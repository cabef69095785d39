-- Leaves the line of waiters, and leaves nothing behind.
--
-- The leaver blocks no more when it sends this. A baton that lies in its list was pushed for it and
-- nobody else blocks there; then the lock in transit is free again.
--
-- KEYS[1] lock key
-- KEYS[2] waiters
-- KEYS[3] baton
-- KEYS[4] statistics
-- ARGV[1] who waited: "id|host|pid|program", or '' of one who stood in no line
-- ARGV[2] '1' to count a timeout
-- ARGV[3] TTL of the statistics in ms
-- Returns 1.
-- Cost: O(log waiters), at most 6 commands.
redis.call('ZREM', KEYS[2], ARGV[1])
local baton = redis.call('LPOP', KEYS[3])
if baton and redis.call('GET', KEYS[1]) == baton then redis.call('DEL', KEYS[1]) end
if ARGV[2] == '1' then
  redis.pcall('HINCRBY', KEYS[4], 'timeout', 1)
  redis.pcall('PEXPIRE', KEYS[4], ARGV[3])
end
return 1
