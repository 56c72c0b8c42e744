//! Whole operations, with the durability that qemu-img's have or more.

use crate::arguments::Arguments;
use cenote_image::create::{self, BackingSpec, CreateOptions};
use cenote_image::{Format, OpenOptions, check as checking, ops};
use std::error::Error;

/// Copies one image to a new one, durably as `cenote` does it unless `-t unsafe`, qemu-img's own
/// default here, is given.
pub(crate) fn convert(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let source = OpenOptions::new(arguments.get("-f")?).open(arguments.file(0)?)?;
    let format: Format = arguments.get("-O")?;
    let name = arguments.file(1)?;
    create::create(name, &CreateOptions::new(format, source.size()))?;
    let (options, open) = (ops::CopyOptions::default(), OpenOptions::new(format));
    let target = match arguments.has("-t") {
        true => open.writable(true).cache(arguments.get("-t")?).open(name)?,
        false => ops::open_target(name, &open, &options)?,
    };
    ops::copy(&source, &target, &options, &())?;
    target.close()?;
    Ok(())
}

/// Writes an overlay's own content into the layer below; the overlay stays as it is.
pub(crate) fn commit(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let top = OpenOptions::new(arguments.get("-f")?)
        .writable_layer(1)
        .open(arguments.file(0)?)?;
    ops::commit(&top, 1, &())?;
    top.close()?;
    Ok(())
}

/// Puts another backing file under an overlay, or with an empty name none.
pub(crate) fn rebase(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let overlay = OpenOptions::new(arguments.get("-f")?)
        .writable(true)
        .open(arguments.file(0)?)?;
    let backing = arguments.text("-b")?;
    if backing.is_empty() {
        ops::flatten(&overlay, &())?;
    } else {
        let format: Format = arguments.get("-F")?;
        let new = OpenOptions::new(format).open(backing.as_ref())?;
        let name = BackingSpec {
            path: backing.to_owned(),
            format,
        };
        ops::rebase(&overlay, &new, &name, &())?;
    }
    overlay.close()?;
    Ok(())
}

/// Checks the tables of an image.
pub(crate) fn check(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let report = checking::check(arguments.file(0)?)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Makes an overlay.
pub(crate) fn create(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let options = CreateOptions::overlay(arguments.text("-b")?, arguments.get("-F")?);
    let file = arguments.file(0)?;
    // The benchmark makes the same overlay again and again, which qemu-img does over the old.
    if file.exists() {
        std::fs::remove_file(file)?;
    }
    create::create(file, &options)?;
    Ok(())
}
