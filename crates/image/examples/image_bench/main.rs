//! The engine behind a command line like qemu-img's, for `cargo xtask bench image`, which runs
//! both on the same files. Only what is measured is here; the command for people is `cenote`.

mod arguments;
mod operations;
mod transfer;

use arguments::Arguments;
use std::error::Error;
use std::process::ExitCode;

const USAGE: &str = "\
Usage: image_bench io -f FORMAT -t CACHE -c COUNT -d DEPTH -s SIZE -S STEP [-w] FILE
       image_bench convert -f FORMAT -O FORMAT [-t CACHE] SOURCE TARGET
       image_bench commit -f FORMAT [-d] FILE
       image_bench rebase -f FORMAT -b BACKING [-F FORMAT] FILE
       image_bench check -f FORMAT FILE
       image_bench create -f FORMAT -F FORMAT -b BACKING FILE";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("image_bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut words: Vec<String>) -> Result<(), Box<dyn Error>> {
    if words.is_empty() {
        return Err(USAGE.into());
    }
    let verb = words.remove(0);
    let arguments = Arguments::parse(words)?;
    match verb.as_str() {
        "io" => transfer::run(&arguments),
        "convert" => operations::convert(&arguments),
        "commit" => operations::commit(&arguments),
        "rebase" => operations::rebase(&arguments),
        "check" => operations::check(&arguments),
        "create" => operations::create(&arguments),
        other => Err(format!("no verb `{other}`\n{USAGE}").into()),
    }
}
