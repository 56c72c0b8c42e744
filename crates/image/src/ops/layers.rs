//! The layers of an open chain by number.

use crate::Image;
use crate::chain;

impl Image {
    /// The layer `depth` below this one: 0 is the image itself, 1 its backing
    /// file.
    pub fn layer(&self, depth: u32) -> Option<&Image> {
        (0..depth).try_fold(self, |image, _| image.backing())
    }

    /// Whether both were opened from the same host file. Files that are no
    /// longer there by their names count as different.
    pub fn is_same_file(&self, other: &Image) -> bool {
        self.path() == other.path()
            || matches!(
                (chain::identity(self.path()), chain::identity(other.path())),
                (Ok(ours), Ok(theirs)) if ours == theirs
            )
    }
}

/// Where the shortest of the layers between `top` and the one at `depth` ends:
/// a layer reads as zeroes behind its end and hides what lies below it there.
/// `u64::MAX` where there are none between.
pub(super) fn shortest_between(top: &Image, depth: u32) -> u64 {
    (1..depth)
        .filter_map(|between| top.layer(between))
        .map(Image::size)
        .min()
        .unwrap_or(u64::MAX)
}
