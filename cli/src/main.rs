//! `cenote`, the command.
fn main() {}
