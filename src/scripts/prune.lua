-- Removes stale references from tags: the confirm step of a sweep.
--
-- Works on several tags, given as one list of work items. For each: every reference whose entry is
-- absent at this instant goes, the others stay; Redis drops a set that becomes empty by itself. An
-- entry may have two names (with and without the key prefix); it is absent when both are.
-- Nothing happens unless the lock still holds our value: a deposed sweeper removes nothing.
-- What may have gone is noted in the quarantine, if that is to outlive us, in the same instant.
--
-- Callers give what they have just seen absent. So there is one look at all entries together, and a
-- closer one only if some of them exist after all.
--
-- KEYS[1] lock key
-- KEYS[2] quarantine, a hash
-- KEYS[3..] the tag keys, one per item; then, item by item, the entry keys of its members: all first
--   names and then, with two names, all second names
-- ARGV[1] our value of the lock
-- ARGV[2] number of names of an entry: 1 or 2
-- ARGV[3] seconds for which a tag must have been idle to be touched, '' to not ask
-- ARGV[4] length of the entry prefix in bytes: a member is the first name of its entry without it
-- ARGV[5] field of the quarantine, '' to note nothing
-- ARGV[6] what is noted: the tags and members of this call
-- ARGV[7] TTL of the quarantine in ms
-- ARGV[8..] per item: the number of members, negative if the tag is known to have others
-- Returns {'FENCED'} or, per item, one of: 0 (every entry exists under its first name), -1 (used of
--   late, left alone), -2 (another type, left alone), the error that kept it from being done, or
--   {1 if all references given went, no others are known, and the tag key is absent now, else 0,
--   number removed, then the positions (from 0) of members that stayed under their first name, as p,
--   or under their second name alone, as -p-1}.
-- Cost: O(members); 3 commands and 1 or 2 per item; if entries exist after all, 2 more per such item
--   and 2 per member of a mixed one. Callers keep the members of one call below 256.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'FENCED'} end
local call, try = redis.call, redis.pcall
local names, idle, prefix = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local items = #ARGV - 7
local first, gone, out, bare, at = 3 + items, 0, {}, {}, {}
local alive = call('EXISTS', unpack(KEYS, first))

local function used_of_late(tag)
  local seen = idle and try('OBJECT', 'IDLETIME', tag)
  -- Where no idle time is kept any more, nobody can tell; more than 180 days is what a clock set back looks like.
  return seen and (type(seen) ~= 'number' or seen < idle or seen > 15552000)
end

-- The members of an item whose entries are absent, and the positions of the others.
local function sift(n)
  local go, stay = {}, {}
  local some = alive > 0 and call('EXISTS', unpack(KEYS, first, first + n * names - 1)) or 0
  for i = first, first + n - 1 do
    if some > 0 and call('EXISTS', KEYS[i]) == 1 then stay[#stay + 1] = i - first
    elseif some > 0 and names == 2 and call('EXISTS', KEYS[i + n]) == 1 then stay[#stay + 1] = first - i - 1
    else go[#go + 1] = string.sub(KEYS[i], prefix + 1) end
  end
  return go, stay
end

for item = 1, items do
  local tag, n = KEYS[2 + item], tonumber(ARGV[7 + item])
  local others = n < 0
  n = math.abs(n)
  if used_of_late(tag) then
    out[item] = -1
  else
    local go, from, to, stay = KEYS, first, first + n - 1, {}
    if alive > 0 or prefix > 0 then
      go, stay = sift(n)
      from, to = 1, #go
    end
    local removed = 0
    if from <= to then removed = try('SREM', tag, unpack(go, from, to)) end
    if type(removed) ~= 'number' then
      out[item] = string.find(removed.err, 'WRONGTYPE', 1, true) and -2 or removed
    elseif names == 1 and #stay == n then
      out[item] = 0
    else
      gone = gone + removed
      out[item] = {0, removed, unpack(stay)}
      if #stay == 0 and not others then bare[#bare + 1], at[#at + 1] = tag, item end
    end
  end
  first = first + n * names
end

-- Tags of which nothing is known to have stayed: most often all of them are gone.
local left = #bare > 0 and call('EXISTS', unpack(bare)) or 0
for i = 1, #bare do
  if left == 0 or (left < #bare and call('EXISTS', bare[i]) == 0) then out[at[i]][1] = 1 end
end
if gone > 0 and ARGV[5] ~= '' then
  redis.pcall('HSET', KEYS[2], ARGV[5], ARGV[6])
  redis.pcall('PEXPIRE', KEYS[2], ARGV[7])
end
return out
