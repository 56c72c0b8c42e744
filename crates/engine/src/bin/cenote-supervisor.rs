//! Owns the life of one running domain; `cenote` starts it. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    cenote_engine::supervisor_main()
}
