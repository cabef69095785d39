//! The committed header is what cbindgen makes of the sources. `UPDATE_HEADER=1` writes it.
#![allow(clippy::unwrap_used, missing_docs)]

mod build;

use build::{archive, library, ok, repository};
use std::path::Path;

#[test]
fn the_header_is_what_the_generator_makes() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(here.join("cbindgen.toml")).unwrap();
    // The generator follows the modules by itself.
    let builder = cbindgen::Builder::new().with_config(config).with_src(here.join("src/lib.rs"));
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let committed = here.join("../include/tagsweep.h");
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&committed, &made).unwrap();
    }
    let declared: Vec<&str> = made.lines().filter(|line| line.contains(" tagsweep_")).collect();
    let functions = declared.iter().filter_map(|line| line.split_once('(').map(|(head, _)| head));
    let functions: Vec<&str> = functions.filter(|head| !head.starts_with(' ')).collect();
    let distinct: std::collections::BTreeSet<&str> = functions.iter().copied().collect();
    assert_eq!(functions.len(), distinct.len(), "something is declared twice: {functions:?}");
    assert!(functions.len() > 20, "{functions:?}");
    let committed = std::fs::read_to_string(committed).unwrap_or_default();
    assert!(made == committed, "include/tagsweep.h is out of date: run `make header`");
}

/// The fields of a struct in the header, each with the default that its comment tells.
fn told_defaults(header: &str, name: &str) -> Vec<(String, String)> {
    let end = header.find(&format!("}} {name};")).unwrap();
    let begin = header[..end].rfind("typedef struct").unwrap();
    let mut told = Vec::new();
    for declaration in header[begin..end].split("/**").skip(1) {
        let (comment, field) = declaration.split_once("*/").unwrap();
        let field = field.trim().trim_end_matches(';').rsplit([' ', '*']).next().unwrap();
        if let Some((_, default)) = comment.split_once("Default: ") {
            let end = default.find([';', '.']).unwrap();
            told.push((field.to_owned(), default[..end].to_owned()));
        } else {
            assert!(field == "size" || field.ends_with("_len"), "{field} tells no default");
        }
    }
    told
}

#[test]
fn options_have_the_defaults_that_the_header_tells() {
    library();
    let header = std::fs::read_to_string(repository().join("include/tagsweep.h")).unwrap();
    let mut checks = String::new();
    for (of, init) in [
        ("tagsweep_options", "tagsweep_options_init"),
        ("tagsweep_lock_options", "tagsweep_lock_options_init"),
    ] {
        let told = told_defaults(&header, of);
        assert!(told.len() > 7, "{told:?}");
        checks += &format!("  {of} {of}_;\n  {init}(&{of}_);\n");
        for (field, default) in told {
            checks += &format!(
                "  if ({of}_.{field} != {default}) {{ puts(\"{of}.{field} is not {default}\"); wrong = 1; }}\n"
            );
        }
    }
    let place = tempfile::tempdir().unwrap();
    let (source, program) = (place.path().join("defaults.c"), place.path().join("defaults"));
    let text = "#include <stdio.h>\n#include <tagsweep.h>\nint main(void) {\n  int wrong = 0;\n";
    std::fs::write(&source, format!("{text}{checks}  return wrong;\n}}\n")).unwrap();
    let include = format!("-I{}", repository().join("include").display());
    let mut compile = std::process::Command::new("cc");
    ok(compile
        .args(["-std=c99", "-Wall", "-Werror", &include])
        .arg(&source)
        .args(archive())
        .args(["-o".as_ref(), program.as_os_str()]));
    ok(&mut std::process::Command::new(program));
}

#[test]
fn the_name_that_the_linker_looks_for_changes_with_the_interface() {
    let read = |file: &str| std::fs::read_to_string(repository().join(file)).unwrap();
    let number = |file: &str, before: &str| -> u32 {
        let text = read(file);
        let (_, rest) = text.split_once(before).unwrap();
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    let major = number("include/tagsweep.h", "#define TAGSWEEP_ABI_VERSION ") / 100;
    assert_eq!(number("capi/build.rs", "-soname,libtagsweep.so."), major);
    assert_eq!(number("Makefile", "\nABI = "), major);
}
