//! How an answer file reaches its installer: in the initrd, on a seed image, or from a server.
//!
//! [`plan`] says for a kind of answer file, a way of booting and a way of delivery what goes
//! where and what the kernel's command line must say; what no installer honours is refused.

pub mod http;
mod plan;
pub mod pxe;

pub use plan::{
    AnswerFiles, Boot, Delivery, MAX_COMMAND_LINE, Packages, Plan, PlanError, Request, Seed,
    Served, join_arguments, plan,
};
