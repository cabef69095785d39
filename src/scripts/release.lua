-- Gives the lock up, if it is still ours.
--
-- KEYS[1] lock key
-- ARGV[1] our value
-- Returns 1 when released, 0 when the key is gone or somebody else's.
-- Cost: O(1), at most 2 commands.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
