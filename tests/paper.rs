//! What prose promises: script headers, the dependency table, versions, README examples.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use redis::Commands;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::{Server, age};
use tagsweep::lock::{Options as Terms, WaitMode};
use tagsweep::sweep::Options;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join(folder)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        match path.is_dir() {
            true => found.extend(files(&name, extension)),
            false if name.ends_with(extension) => found.push(path),
            false => {}
        }
    }
    found
}

/// Indices of `KEYS[n]` or `ARGV[n]` in a text.
fn indices(text: &str, table: &str) -> BTreeSet<u32> {
    let open = format!("{table}[");
    let after = text.split(&open).skip(1);
    after.filter_map(|rest| rest.split([']', '.']).next()?.parse().ok()).collect()
}

#[test]
fn script_headers_are_their_bodies() {
    let scripts = files("src/scripts", ".lua");
    assert_eq!(scripts.len(), 11);
    for path in scripts {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.display();
        let split = text.lines().take_while(|line| line.starts_with("--")).count();
        let header = text.lines().take(split).collect::<Vec<_>>().join("\n");
        let body: Vec<&str> =
            text.lines().skip(split).filter(|line| !line.trim().starts_with("--")).collect();
        let body = body.join("\n");
        assert!(!text.starts_with("#!"), "{name}: a shebang would refuse it without memory");
        assert!(header.contains("-- Returns ") && header.contains("-- Cost: "), "{name}");
        for table in ["KEYS", "ARGV"] {
            let (said, used) = (indices(&header, table), indices(&body, table));
            let open = header.contains(&format!("{table}[{}..]", said.len()));
            let beyond: Vec<_> = used.difference(&said).collect();
            assert!(beyond.is_empty(), "{name} uses {table}{beyond:?} and does not say so");
            let fixed = said.iter().filter(|n| !(open && **n as usize == said.len()));
            for n in fixed {
                assert!(used.contains(n), "{name} documents {table}[{n}] and does not use it");
            }
        }
        for line in body.lines().filter(|line| line.contains("call('")) {
            let commands =
                line.split("call('").skip(1).map(|rest| rest.split('\'').next().unwrap());
            for command in commands {
                assert!(
                    !["KEYS", "SCAN", "SSCAN", "SMEMBERS"].contains(&command),
                    "{name}: {line}"
                );
            }
        }
    }
}

#[test]
fn rooms_import_what_the_table_allows() {
    let text = read("ARCHITECTURE.md");
    let table: BTreeMap<&str, BTreeSet<&str>> = text
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.trim_end_matches('|').split('|');
            Some((cells.next()?.trim(), cells.next()?.split_whitespace().collect()))
        })
        .filter(|(room, _)| *room != "room")
        .collect();
    let mut used: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in files("src", ".rs") {
        let room = path.strip_prefix(root().join("src")).unwrap().components().next().unwrap();
        let room = room.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        let source = std::fs::read_to_string(&path).unwrap();
        let source = source.split("#[cfg(test)]").next().unwrap();
        let code = source.lines().filter(|line| !line.trim().starts_with("//"));
        for line in code {
            for rest in line.split("crate::").skip(1) {
                let other = rest.split([':', ';', ',', '{', ' ', ')']).next().unwrap();
                if other != room && table.contains_key(other) {
                    used.entry(room.clone()).or_default().insert(other.to_owned());
                }
            }
        }
        assert!(room == "lib" || table.contains_key(room.as_str()), "{room} is not in the table");
    }
    for (room, allowed) in &table {
        let imported: BTreeSet<&str> =
            used.get(*room).into_iter().flatten().map(String::as_str).collect();
        assert_eq!(&imported, allowed, "{room}: ARCHITECTURE.md and the `use` lines differ");
    }
}

#[test]
fn one_version_everywhere() {
    let version = env!("CARGO_PKG_VERSION");
    for manifest in ["capi", "cli", "php"] {
        assert!(read(format!("{manifest}/Cargo.toml")).contains("version.workspace = true"));
    }
    assert!(read("php/glue/composer.json").contains(&format!("\"version\": \"{version}\"")));
    assert!(read("CHANGELOG.md").contains(&format!("## {version} ")));
}

/// What the comments of a struct's fields say of their defaults, by field; nothing of those that are options.
fn told_defaults(source: &str) -> BTreeMap<String, String> {
    let (mut told, mut comment) = (BTreeMap::new(), String::new());
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            comment.push_str(text);
        } else if let Some((field, _)) = line.strip_prefix("pub ").and_then(|l| l.split_once(':')) {
            if let Some((_, default)) = comment.split_once("Default: ") {
                let end = default.find([';', ',']).unwrap_or(default.trim_end_matches('.').len());
                told.insert(field.to_owned(), default[..end].to_owned());
            }
            comment.clear();
        } else {
            comment.clear();
        }
    }
    told
}

#[test]
fn options_have_the_defaults_that_their_comments_tell() {
    let Options {
        entry_prefix: None,
        trust_mapping,
        grace,
        verify,
        max_tag_age: None,
        on_aged,
        max_share,
        max_removals: None,
        max_duration: None,
        strict,
        durable,
        remember: None,
        resume,
        max_latency,
        effort,
        memory,
        lock,
        lock_ttl,
        wait,
        dry_run,
    } = Options::default()
    else {
        panic!("another option has a default: tell it");
    };
    let us = |span: Duration| format!("{} us", span.as_micros());
    let s = |span: Duration| format!("{} s", span.as_secs_f64());
    let sweep = [
        ("trust_mapping", trust_mapping.to_string()),
        ("grace", s(grace)),
        ("verify", s(verify)),
        ("on_aged", format!("{on_aged:?}").to_lowercase()),
        ("max_share", max_share.to_string()),
        ("strict", strict.to_string()),
        ("durable", durable.to_string()),
        ("resume", resume.to_string()),
        ("max_latency", us(max_latency)),
        ("effort", effort.to_string()),
        ("memory", format!("{} MiB", memory >> 20)),
        ("lock", String::from_utf8(lock).unwrap()),
        ("lock_ttl", s(lock_ttl)),
        ("wait", s(wait)),
        ("dry_run", dry_run.to_string()),
    ];
    let sweep = sweep.map(|(field, default)| (field.to_owned(), default));
    assert_eq!(told_defaults(&read("src/sweep/options.rs")), BTreeMap::from(sweep));

    let terms = Terms::new(Duration::from_secs(1));
    assert_eq!((terms.wait_mode, terms.renew.is_none()), (WaitMode::Line, true));
    assert!(terms.max_hold.is_none());
    let lock = [
        ("wait_mode", "in line".to_owned()),
        ("renew", "none".to_owned()),
        ("max_hold", "none".to_owned()),
        ("at_least", s(terms.at_least)),
        ("confirm", terms.confirm.to_string()),
        ("record", terms.record.to_string()),
        ("release_on_drop", terms.release_on_drop.to_string()),
    ];
    let lock = lock.map(|(field, default)| (field.to_owned(), default));
    assert_eq!(told_defaults(&read("src/lock/options.rs")), BTreeMap::from(lock));
}

#[test]
fn every_file_that_the_map_names_exists() {
    let map = read("ARCHITECTURE.md");
    for path in files("src", ".rs") {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name == "mod.rs" || map.contains(name), "{name} is not on the map");
    }
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = read(document);
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let there = link.starts_with("http") || root().join(link).exists();
            assert!(there, "{document} links to {link}");
        }
    }
}

/// The fenced blocks of a language in the README.
fn examples(language: &str) -> Vec<String> {
    let readme = read("README.md");
    let fence = format!("```{language}\n");
    let blocks = readme.split(&fence).skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

fn tagged_cache(server: &Server) {
    let mut con = server.connect();
    let _: () = con.set("item:live", "x").unwrap();
    let _: () = con.sadd("tag:mixed", &["item:live", "item:gone"]).unwrap();
    let _: () = con.sadd("tag:orphan", &["item:a"]).unwrap();
    age(&mut con, "tag:mixed", 60);
    age(&mut con, "tag:orphan", 60);
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; run `make deps`"));
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out
}

/// A server at the address that the README's examples use would not be private, so their address is
/// replaced by one that is.
fn privately(example: &str, server: &Server) -> String {
    let socket = server.socket().display().to_string();
    example
        .replace("connect('127.0.0.1')", &format!("connect('{socket}')"))
        .replace("redis://127.0.0.1", &server.url())
}

#[test]
fn the_php_examples_run() {
    let server = Server::start();
    tagged_cache(&server);
    let extension = root().join("target/release/libtagsweep_php.so");
    assert!(extension.exists(), "run `make build`");
    let file = server.dir().join("readme.php");
    let says = ["Cleaned up 1 orphaned cache tags.\nours, with fence ", "made the report\n"];
    let examples_of_php = examples("php");
    assert_eq!(examples_of_php.len(), says.len());
    for (example, said) in examples_of_php.iter().zip(says) {
        std::fs::write(&file, privately(example, &server)).unwrap();
        let text = run(Command::new("php")
            .args(["-d", &format!("extension={}", extension.display()), "-d"])
            .arg("tagsweep.alias_namespace=YourFramework\\Cache")
            .arg(&file));
        assert!(text.contains(said), "{text}");
    }
    assert!(examples("ini")[0].contains("tagsweep.alias_namespace = \"YourFramework\\Cache\""));
}

#[test]
fn the_shell_example_runs() {
    let server = Server::start();
    tagged_cache(&server);
    let shell = examples("sh");
    let example = shell.iter().find(|block| block.contains("tagsweep plan")).unwrap();
    let program = root().join("target/release");
    assert!(program.join("tagsweep").exists(), "run `make build`");
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let script = format!("set -e\n{}", privately(example, &server));
    let text = run(Command::new("sh").arg("-c").arg(script).env("PATH", path));
    assert!(text.contains("1 to remove") && text.contains("\"type\":\"report\""), "{text}");
    let makefile = read("Makefile");
    for line in shell[0].lines() {
        let target = line.split_whitespace().nth(1).unwrap();
        assert!(makefile.contains(&format!("\n{target}:")), "make {target}");
    }
}

#[test]
fn the_c_example_runs_with_what_make_install_puts_in_place() {
    let server = Server::start();
    tagged_cache(&server);
    let [example] = examples("c").try_into().unwrap();
    let prefix = server.dir().join("prefix");
    let prefix_argument = format!("PREFIX={}", prefix.display());
    run(Command::new("make").args(["install", &prefix_argument]).current_dir(root()));
    let (source, program) = (server.dir().join("readme.c"), server.dir().join("readme"));
    std::fs::write(&source, privately(&example, &server)).unwrap();
    let flags = run(Command::new("pkg-config")
        .args(["--cflags", "--libs", "tagsweep"])
        .env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")));
    run(Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"])
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .args(flags.split_whitespace()));
    let text = run(Command::new(&program).env("LD_LIBRARY_PATH", prefix.join("lib")));
    assert_eq!(text, "1 tags removed\n");
}

#[test]
fn what_is_installed_has_a_page_for_every_command_and_can_be_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let destination = format!("DESTDIR={}", folder.path().display());
    let make = |targets: &[&str]| {
        run(Command::new("make").args(targets).arg(&destination).current_dir(root()))
    };
    make(&["install", "install-php"]);
    let share = folder.path().join("usr/local/share");
    let bash = share.join("bash-completion/completions/tagsweep.bash");
    let bash = std::fs::read_to_string(bash).unwrap();
    let help = run(Command::new(root().join("target/release/tagsweep")).arg("--help"));
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let names = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names: Vec<&str> = names.map(|line| line.split_whitespace().next().unwrap()).collect();
    assert!(names.len() > 9 && names.contains(&"sweep"), "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        let page = std::fs::read_to_string(share.join(format!("man/man1/tagsweep-{name}.1")));
        assert!(page.unwrap().contains(".SH OPTIONS"), "{name}");
        assert!(bash.contains(&format!("tagsweep,{name})")), "{name}");
    }
    let place = run(Command::new("php").args(["-r", "echo PHP_EXTENSION_DIR;"]));
    let extension = folder.path().join(place.trim_start_matches('/')).join("tagsweep.so");
    let extension = format!("extension={}", extension.display());
    let class = "echo class_exists('Tagsweep\\DistributedLock') ? 'there' : 'missing';";
    assert_eq!(run(Command::new("php").args(["-d", &extension, "-r", class])), "there");
    make(&["uninstall"]);
    let left = run(Command::new("find").arg(folder.path()).args(["!", "-type", "d"]));
    assert_eq!(left, "");
}
