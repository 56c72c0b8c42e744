//! The workspace driver.
fn main() {}
