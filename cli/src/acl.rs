//! `tagsweep acl`: the rule of the server's ACL that a user of tagsweep needs, and no more.

use crate::args::{AclArgs, Role, bytes};
use crate::{Done, exit};

/// What holding a lock takes, waiting for it, and looking after it.
pub(crate) const LOCK: &str = "blpop client|id client|list client|setname client|tracking \
    client|unblock del eval evalsha exists get getex hdel hgetall hincrby info lindex lpop lpush lrange ltrim pexpire ping pttl rpush select set time \
    wait zadd zcard zrange zrem zremrangebyscore zrevrank zscore";

/// Commands that came later than the rest of ours.
const NEW: [(&str, (u32, u32)); 1] = [("client|no-touch", (7, 2))];

/// What a plan reads.
const PLAN: &str = "client|no-touch dbsize exists get hget info memory|usage object|idletime ping scan \
    scard select sscan time";

/// What a sweep does besides what a plan reads and its lock takes.
pub(crate) const SWEEP: &str =
    "expire hdel hscan hset pttl sadd script|load sismember srem type unlink";

/// What `status`, `metrics` and `history` read.
const WATCH: &str = "get hgetall lrange ping pttl scan select time zcard zrange";

pub(crate) fn acl(args: &AclArgs) -> Done {
    let (prefix, entries) = (bytes(&args.prefix), args.entry_prefix.as_deref().map(bytes));
    let mut rules = rules(args.role, &prefix, entries.as_deref());
    if let Some(version) = args.server_version {
        let unknown = NEW.iter().filter(|(_, since)| version < *since);
        let unknown: Vec<Vec<u8>> =
            unknown.map(|(name, _)| format!("+{name}").into_bytes()).collect();
        rules.retain(|rule| !unknown.contains(rule));
    }
    let rules: Vec<String> = rules.iter().map(|rule| quoted(rule)).collect();
    say!("ACL SETUSER {} reset on >PASSWORD {}", quoted(&bytes(&args.user)), rules.join(" "));
    Ok(exit::DONE)
}

/// Patterns of keys, then commands. Without an entry prefix an entry may have any name.
fn rules(role: Role, prefix: &[u8], entry_prefix: Option<&[u8]>) -> Vec<Vec<u8>> {
    let (prefix, of) = (escaped(prefix), |parts: &[&[u8]]| parts.concat());
    // A lock key with a hash tag of its own has companions without braces.
    let locks = [of(&[b"~", &prefix, b"lock:*"]), of(&[b"~{", &prefix, b"lock:*}:*"])];
    let tags = of(&[b"~", &prefix, b"tag:*"]);
    let entries = of(&[b"~", &escaped(entry_prefix.unwrap_or_default()), b"*"]);
    let (keys, commands): (Vec<Vec<u8>>, &[&str]) = match role {
        Role::Lock => (locks.to_vec(), &[LOCK]),
        Role::Watch => (locks.to_vec(), &[WATCH]),
        Role::Plan | Role::Sweep if entries == b"~*" => (vec![entries], commands_of(role)),
        Role::Plan | Role::Sweep => ([&locks[..], &[tags, entries]].concat(), commands_of(role)),
    };
    let mut commands: Vec<&str> =
        commands.iter().flat_map(|list| list.split_whitespace()).collect();
    commands.sort_unstable();
    commands.dedup();
    keys.into_iter().chain(commands.iter().map(|name| format!("+{name}").into_bytes())).collect()
}

fn commands_of(role: Role) -> &'static [&'static str] {
    if role == Role::Plan { &[PLAN] } else { &[LOCK, PLAN, SWEEP] }
}

/// Bytes that a pattern takes as they are.
fn escaped(text: &[u8]) -> Vec<u8> {
    let special = |byte: &u8| b"*?[]\\^-".contains(byte);
    // A rule cannot hold a space: any byte in its place.
    let byte = |b: &u8| if *b == b' ' { b'?' } else { *b };
    text.iter().flat_map(|b| special(b).then_some(b'\\').into_iter().chain([byte(b)])).collect()
}

/// As redis-cli reads an argument.
fn quoted(argument: &[u8]) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"~:_{}*-.|+".contains(b);
    if !argument.is_empty() && argument.iter().all(plain) {
        return String::from_utf8_lossy(argument).into_owned();
    }
    let byte = |b: &u8| match b {
        b'"' | b'\\' => format!("\\{}", char::from(*b)),
        b' '..=b'~' => char::from(*b).to_string(),
        _ => format!("\\x{b:02x}"),
    };
    format!("\"{}\"", argument.iter().map(byte).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(role: Role, prefix: &str, entry_prefix: Option<&str>) -> String {
        let rules = rules(role, prefix.as_bytes(), entry_prefix.map(str::as_bytes));
        rules.iter().map(|rule| quoted(rule)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn keys_are_those_of_the_role() {
        assert!(text(Role::Lock, "app:", None).starts_with("~app:lock:* ~{app:lock:*}:* +blpop "));
        assert!(text(Role::Sweep, "app:", None).starts_with("~* +blpop "));
        let plan = text(Role::Plan, "app:", Some("app:"));
        assert!(
            plan.starts_with("~app:lock:* ~{app:lock:*}:* ~app:tag:* ~app:* +client|no-touch ")
        );
        assert!(!plan.contains("+set") && !plan.contains("+eval"));
    }

    #[test]
    fn prefixes_are_taken_literally_and_quoted() {
        assert!(text(Role::Watch, "a*\" ", None).starts_with("\"~a\\\\*\\\"?lock:*\" "));
        assert_eq!(quoted(b"\xff"), "\"\\xff\"");
    }
}
