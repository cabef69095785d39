-- Removes stale references from tags: the confirm step of a sweep.
--
-- Works on several tags, given as one list of work items. For each: every reference whose entry is
-- absent at this instant goes, the others stay; Redis drops a set that becomes empty by itself. An
-- entry may have two names (with and without the key prefix); it is absent when both are.
-- Nothing happens unless the lock still holds our value: a deposed sweeper removes nothing.
-- What may have gone is noted in the quarantine, if that is to outlive us, in the same instant.
--
-- KEYS[1] lock key
-- KEYS[2] quarantine, a hash
-- KEYS[3..] per item: the tag key, then the entry keys of its members, all first names and then,
--   with two names, all second names
-- ARGV[1] our value of the lock
-- ARGV[2] number of names of an entry: 1 or 2
-- ARGV[3] seconds for which a tag must have been idle to be touched, '' to not ask
-- ARGV[4] length of the entry prefix in bytes: a member is the first name of its entry without it
-- ARGV[5] field of the quarantine, '' to note nothing
-- ARGV[6] what is noted: the tags and members of this call
-- ARGV[7] TTL of the quarantine in ms
-- ARGV[8..] per item: the number of members
-- Returns {'FENCED'} or, per item, one of: -1 (used of late, left alone), -2 (another type, left
--   alone), or {1 if the tag key is absent now else 0, number removed, then the positions (from 0)
--   of members that stayed under their first name, as p, or under their second name alone, as -p-1}.
-- Cost: O(members); at most 4 commands per item and 2 more per member of a mixed tag. Callers keep
-- the members of one call below 256.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'FENCED'} end
local names, idle, prefix = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local key, out, gone = 3, {}, 0
for arg = 8, #ARGV do
  local n = tonumber(ARGV[arg])
  local tag, first, second = KEYS[key], key, key + n
  local result
  if idle then
    local seen = redis.pcall('OBJECT', 'IDLETIME', tag)
    if type(seen) == 'number' and seen < idle then result = -1 end
  end
  if not result then
    local stay = {}
    if redis.call('EXISTS', unpack(KEYS, key + 1, key + n * names)) > 0 then
      for i = 1, n do
        if redis.call('EXISTS', KEYS[first + i]) == 1 then stay[i] = i - 1
        elseif names == 2 and redis.call('EXISTS', KEYS[second + i]) == 1 then stay[i] = -i end
      end
    end
    local go = {}
    for i = 1, n do
      if not stay[i] then go[#go + 1] = string.sub(KEYS[first + i], prefix + 1) end
    end
    local removed = 0
    if #go > 0 then removed = redis.pcall('SREM', tag, unpack(go)) end
    if type(removed) ~= 'number' then
      result = -2
    else
      gone = gone + removed
      result = {redis.call('EXISTS', tag) == 0 and 1 or 0, removed}
      for i = 1, n do if stay[i] then result[#result + 1] = stay[i] end end
    end
  end
  out[#out + 1] = result
  key = key + 1 + n * names
end
if gone > 0 and ARGV[5] ~= '' then
  redis.pcall('HSET', KEYS[2], ARGV[5], ARGV[6])
  redis.pcall('PEXPIRE', KEYS[2], ARGV[7])
end
return out
