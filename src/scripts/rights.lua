-- Which commands the user of this connection may not run, of those with which a sweep removes, puts back
-- and notes: asked before anything is removed.
--
-- KEYS[1] a tag key; it need not exist
-- KEYS[2] where removals are noted, if they are
-- Returns the names of those refused; nothing where the server cannot tell (before 7.0).
-- Cost: O(1).
local may, refused = redis.acl_check_cmd, {}
if not may then return refused end
for _, command in ipairs({'SREM', 'SADD', 'SISMEMBER'}) do
  if not may(command, KEYS[1], '') then refused[#refused + 1] = command end
end
if not may('TYPE', KEYS[1]) then refused[#refused + 1] = 'TYPE' end
if KEYS[2] and not may('HSET', KEYS[2], '', '') then refused[#refused + 1] = 'HSET' end
return refused
