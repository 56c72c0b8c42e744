//! The document of a volume that is not made yet, for `--print-xml`.

use cenote_engine::{Format, NewVolume};
use cenote_model::volume::{
    BackingStore, Compat, Format as DocumentFormat, FormatType, Volume, VolumeFeatures,
    VolumeTarget,
};
use cenote_model::{Bytes, Document as _, Name};

use crate::explain::Code;
use crate::failure::{Failure, Result};

/// What the arguments ask for, as `vol-create` reads it.
///
/// # Errors
/// The name is none, or an option has no place in a document.
pub(super) fn document_of(new: &NewVolume) -> Result<String> {
    let name = Name::new(new.name.clone()).map_err(|error| {
        Failure::new(
            Code::E0308,
            format!("'{}' cannot be the name of a volume", new.name),
        )
        .why(error.to_string())
        .fix("choose another name")
        .next("cenote help names")
    })?;
    let settings = &new.qcow2;
    if new.preallocation.is_some()
        || settings.refcount_bits.is_some()
        || settings.compression.is_some()
    {
        return Err(Failure::new(Code::E0307, "a document cannot say all of these options")
            .why("libvirt's documents have no place for preallocation, refcount width and compression")
            .fix("leave these options or --print-xml out")
            .next("cenote vol-create-as --help"));
    }
    let features = VolumeFeatures {
        lazy_refcounts: settings.lazy_refcounts,
        extended_l2: settings.extended_l2,
        ..VolumeFeatures::default()
    };
    let volume = Volume {
        name,
        capacity: new.capacity.map(Bytes),
        allocation: new.allocation.map(Bytes),
        target: VolumeTarget {
            format: Some(format_type(new.format)),
            compat: settings.version_2.then_some(Compat::V0_10),
            cluster_size: settings.cluster_size.map(Bytes),
            features: (features != VolumeFeatures::default()).then_some(features),
            ..VolumeTarget::default()
        },
        backing_store: new.backing.as_ref().map(|backing| BackingStore {
            path: backing.image.clone(),
            format: backing.format.map(format_type),
            ..BackingStore::default()
        }),
        ..Volume::default()
    };
    Ok(volume.to_xml())
}

fn format_type(format: Format) -> FormatType {
    let kind = match format {
        Format::Raw => DocumentFormat::Raw,
        Format::Qcow2 => DocumentFormat::Qcow2,
    };
    FormatType {
        kind,
        ..FormatType::default()
    }
}
