//! Names the C library for the dynamic linker: programs ask for the interface's major version.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libtagsweep.so.0");
    // The thread that renews leases must not lose its code when a program unloads the library.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
