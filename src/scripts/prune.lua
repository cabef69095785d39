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
-- Returns {'FENCED'} or, per item, one of: 0 (every entry exists under its first name), -1 (used of
--   late, left alone), -2 (another type, left alone), or {1 if all references given went and the tag
--   key is absent now, else 0, number removed, then the positions (from 0) of members that stayed
--   under their first name, as p, or under their second name alone, as -p-1}.
-- Cost: O(members); at most 4 commands per item and 2 more per member of a mixed tag. Callers keep
-- the members of one call below 256.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'FENCED'} end
local call, try = redis.call, redis.pcall
local names, idle, prefix = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local key, out, gone = 3, {}, 0

-- The members whose entries are absent, and the positions of the others.
local function sift(first, last, n, alive)
  local go, stay = {}, {}
  -- Where few are unlike the rest, one look at four is less than four looks.
  local step = names == 1 and math.min(alive, n - alive) * 8 < n and 4 or 1
  for from = first, last, step do
    local to = math.min(from + step - 1, last)
    local some = alive > 0 and call('EXISTS', unpack(KEYS, from, to)) or 0
    for i = from, to do
      if some == to - from + 1 or (some > 0 and call('EXISTS', KEYS[i]) == 1) then stay[#stay + 1] = i - first
      elseif alive > 0 and names == 2 and call('EXISTS', KEYS[i + n]) == 1 then stay[#stay + 1] = first - i - 1
      else go[#go + 1] = string.sub(KEYS[i], prefix + 1) end
    end
  end
  return go, stay
end

for arg = 8, #ARGV do
  local n = tonumber(ARGV[arg])
  local tag, first, last = KEYS[key], key + 1, key + n
  local result
  if idle then
    local seen = try('OBJECT', 'IDLETIME', tag)
    if type(seen) == 'number' and seen < idle then result = -1 end
  end
  if not result then
    local alive = call('EXISTS', unpack(KEYS, first, key + n * names))
    local removed, stay = 0, {}
    if alive == n and names == 1 then
      result = 0
    elseif alive == 0 and prefix == 0 then
      removed = try('SREM', tag, unpack(KEYS, first, last))
    else
      local go
      go, stay = sift(first, last, n, alive)
      if #go > 0 then removed = try('SREM', tag, unpack(go)) end
    end
    if type(removed) ~= 'number' then
      result = -2
    elseif not result then
      gone = gone + removed
      local left = #stay > 0 or call('EXISTS', tag) == 1
      result = {left and 0 or 1, removed, unpack(stay)}
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
