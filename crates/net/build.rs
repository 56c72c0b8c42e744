//! Links the system's libslirp.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // 4.7 is the first version whose DHCP server can be switched off.
    if let Err(error) = pkg_config::Config::new()
        .atleast_version("4.7.0")
        .probe("slirp")
    {
        eprintln!(
            "libslirp 4.7 or later and its headers are needed (Debian: libslirp-dev \
             libglib2.0-dev pkg-config; `cargo xtask setup` installs them): {error}"
        );
        std::process::exit(1);
    }
}
