//! Keeps the code mapped after PHP has unloaded the module: thread-local destructors may still run.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
