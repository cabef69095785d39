//! Names of the locks of a server, read from its keys.

use crate::error::Result;
use crate::layout::escape_glob;
use crate::lock::protocol::{Keys, has_hash_tag};
use crate::lock::{SharedLink, guard};
use crate::reply::understood;
use std::collections::BTreeSet;

/// Names of all locks that are held, were held in the last month, or swept under in the last year: walks over all
/// keys, a thousand a round trip, about a second for a million keys.
///
/// # Errors
/// Whatever keeps the server from answering.
pub fn names(link: &SharedLink) -> Result<Vec<Vec<u8>>> {
    let link = &mut guard(link);
    let prefix = link.config().prefix.clone();
    let (plain, braced) =
        ([&prefix, b"lock:" as &[u8]].concat(), [b"{", &prefix[..], b"lock:"].concat());
    let mut found = BTreeSet::new();
    let mut cursor = b"0".to_vec();
    loop {
        let mut scan = redis::cmd("SCAN");
        // One walk for both forms: of the lock key, and of companions in braces.
        let pattern =
            [b"*", escape_glob(&[&prefix[..], b"lock:"].concat()).as_slice(), b"*"].concat();
        scan.arg(&cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1000);
        let reply = link.ask(&scan)?;
        let (next, keys): (Vec<u8>, Vec<Vec<u8>>) = understood(reply)?;
        for key in keys {
            found.extend(name_in(&key, &plain, &braced).filter(|name| is_name(name, &prefix)));
        }
        if next == b"0" {
            return Ok(found.into_iter().collect());
        }
        cursor = next;
    }
}

/// Whether a lock may be called that: not every key under the prefix is one.
fn is_name(name: &[u8], prefix: &[u8]) -> bool {
    Keys::new(prefix, name).is_ok()
}

/// What a lock, or a sweep under it, keeps beside the lock key; and records, which are numbered.
const COMPANIONS: [&[u8]; 10] = [
    b":fence",
    b":stats",
    b":runs",
    b":waiters",
    b":baton",
    b":history",
    b":sweeps",
    b":mapping",
    b":checkpoint",
    b":quarantine",
];

/// The lock that a key belongs to.
fn name_in(key: &[u8], plain: &[u8], braced: &[u8]) -> Option<Vec<u8>> {
    if let Some(rest) = key.strip_prefix(braced) {
        // Those that outlive a lease; the others tell nothing more. Of sweeps longer than of locks.
        let lasting: [&[u8]; 3] = [b"}:fence", b"}:stats", b"}:sweeps"];
        return lasting.into_iter().find_map(|end| rest.strip_suffix(end)).map(<[u8]>::to_vec);
    }
    let name = key.strip_prefix(plain)?;
    // Where the lock key has a hash tag of its own, its companions have no braces.
    let owner = if has_hash_tag(key) { companion_of(name) } else { None };
    Some(owner.unwrap_or(name).to_vec())
}

/// What the rest of a key is a companion of, if its end is that of one.
fn companion_of(rest: &[u8]) -> Option<&[u8]> {
    let digits = rest.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let (unnumbered, _) = rest.split_at(rest.len() - digits);
    let ends = COMPANIONS.into_iter().find_map(|what| rest.strip_suffix(what));
    ends.or_else(|| unnumbered.strip_suffix(b":records:").filter(|_| digits > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_keys() {
        let name = |key: &[u8]| name_in(key, b"lock:", b"{lock:");
        assert_eq!(name(b"lock:a").unwrap(), b"a");
        assert_eq!(name(b"{lock:a}:fence").unwrap(), b"a");
        assert_eq!(name(b"{lock:a}:waiters"), None);
        assert_eq!(name(b"{lock:a}:sweeps").unwrap(), b"a");
        assert_eq!(name(b"lock:{a}b:stats").unwrap(), b"{a}b");
        assert_eq!(name(b"lock:a:stats").unwrap(), b"a:stats");
        assert_eq!(name(b"block:a"), None);
        // A prefix with a hash tag, as a Cluster's users have it.
        let name = |key: &[u8]| name_in(key, b"{app}:lock:", b"{{app}:lock:");
        assert_eq!(name(b"{app}:lock:a").unwrap(), b"a");
        for what in ["fence", "waiters", "history", "checkpoint", "mapping", "records:17"] {
            assert_eq!(name(format!("{{app}}:lock:a:{what}").as_bytes()).unwrap(), b"a", "{what}");
        }
        assert_eq!(name(b"{app}:lock:a:records:").unwrap(), b"a:records:");
    }
}
