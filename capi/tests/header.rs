//! The committed header is what cbindgen makes of the sources. `UPDATE_HEADER=1` writes it.
#![allow(clippy::unwrap_used, missing_docs)]

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
