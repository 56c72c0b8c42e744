//! Full copies of volumes: clone and convert.

use std::path::Path;

use cenote_image::{Format, OpenOptions, ops};
use cenote_pools::{Error as StorageError, Progress, Source, VolumeId, VolumeInfo};

use super::NewVolume;
use crate::error::{Error, Result};
use crate::jobs::JobProgress;
use crate::node::Node;
use crate::plan::Verb;

/// How a copy is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CloneSettings {
    /// Compress the clusters of a qcow2 copy.
    pub compress: bool,
    /// Threads; 0 for as many as suit the host.
    pub threads: usize,
}

impl Node {
    /// Makes a volume with the content of another, through whatever chain that
    /// has; the copy has a chain only if `new` asks for one.
    ///
    /// Without a capacity the copy is as large as the source, without an
    /// allocation as large on the host as its data.
    ///
    /// # Errors
    /// As [`Node::volume_create`]; the source is in use by a writer or cannot
    /// be read; the copy would be smaller than the source. Nothing is left of
    /// the copy then.
    pub fn volume_clone(
        &self,
        source: &VolumeId,
        pool: &str,
        new: &NewVolume,
        settings: &CloneSettings,
        progress: &dyn Progress,
    ) -> Result<VolumeInfo> {
        let from = self.volume(source)?;
        let from = OpenSource {
            format: self.trusted_format(&from)?,
            info: from,
        };
        let mut new = new.clone();
        let capacity = *new.capacity.get_or_insert(from.info.capacity);
        if capacity < from.info.capacity {
            return Err(StorageError::Invalid {
                what: format!("volume '{}'", new.name),
                reason: format!(
                    "{capacity} bytes cannot hold the {} of '{}'",
                    from.info.capacity,
                    from.info.id()
                ),
            }
            .into());
        }
        let row = self.running_pool(pool)?;
        if matches!(row.definition.spec.source, Source::VolumeGroup { .. }) {
            return self.create_logical(&row, &new, Verb::Clone, |device, job| {
                // Old content of the device is overwritten with zeroes.
                let options = ops::CopyOptions {
                    sparse_size: 0,
                    ..copy_options(settings)
                };
                self.copy_into(
                    &from,
                    device,
                    Format::Raw,
                    &options,
                    &job.progress(progress),
                )
            });
        }
        if new.allocation.is_none() && new.preallocation.is_none() {
            new.allocation = Some(0);
        }
        self.create_with(&row, &new, Verb::Clone, |temporary, job| {
            let options = copy_options(settings);
            self.copy_into(
                &from,
                temporary,
                new.format,
                &options,
                &job.progress(progress),
            )
        })
    }

    fn copy_into(
        &self,
        source: &OpenSource,
        target: &Path,
        format: Format,
        options: &ops::CopyOptions,
        progress: &JobProgress<'_>,
    ) -> Result<()> {
        let source = self.open_image(&source.info.path, source.format, false)?;
        let open = OpenOptions::new(format).backing(self.backing_policy()?);
        let target = ops::open_target(target, &open, options).map_err(StorageError::from)?;
        ops::copy(&source, &target, options, progress).map_err(StorageError::from)?;
        target
            .close()
            .map_err(|error| Error::from(StorageError::from(error)))
    }
}

/// A volume to be read with a format that is known.
struct OpenSource {
    info: VolumeInfo,
    format: Format,
}

fn copy_options(settings: &CloneSettings) -> ops::CopyOptions {
    ops::CopyOptions {
        compress: settings.compress,
        threads: settings.threads,
        ..ops::CopyOptions::default()
    }
}
