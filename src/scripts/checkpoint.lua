-- Keeps how far a sweep has come, for whoever goes on after it, or forgets it.
--
-- Nothing happens unless the lock still holds our value: a deposed sweeper has nothing to say.
--
-- KEYS[1] lock key
-- KEYS[2] checkpoint
-- ARGV[1] our value of the lock
-- ARGV[2] the checkpoint, '' to forget it
-- ARGV[3] how long it stays fresh in ms
-- Returns 1 when done, 0 when the lock is not ours.
-- Cost: O(1), 2 commands.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[2])
else
  redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
end
return 1
