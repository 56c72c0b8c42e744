//! The kinds of metadata that a host cluster can hold.

use std::fmt;

/// What a metadata cluster holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Header = 1,
    RefcountTable,
    RefcountBlock,
    ActiveL1,
    SnapshotL1,
    L2,
    SnapshotTable,
    BitmapDirectory,
    BitmapTable,
    Bitmap,
}

const ALL: [Owner; 10] = [
    Owner::Header,
    Owner::RefcountTable,
    Owner::RefcountBlock,
    Owner::ActiveL1,
    Owner::SnapshotL1,
    Owner::L2,
    Owner::SnapshotTable,
    Owner::BitmapDirectory,
    Owner::BitmapTable,
    Owner::Bitmap,
];

impl Owner {
    /// A number from 1 on.
    pub(super) fn number(self) -> u32 {
        self as u32
    }

    pub(super) fn from_number(number: u32) -> Option<Self> {
        ALL.get((number as usize).checked_sub(1)?).copied()
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Owner::Header => "the header",
            Owner::RefcountTable => "the refcount table",
            Owner::RefcountBlock => "a refcount block",
            Owner::ActiveL1 => "the active L1 table",
            Owner::SnapshotL1 => "a snapshot's L1 table",
            Owner::L2 => "an L2 table",
            Owner::SnapshotTable => "the snapshot table",
            Owner::BitmapDirectory => "the bitmap directory",
            Owner::BitmapTable => "a bitmap table",
            Owner::Bitmap => "a bitmap",
        })
    }
}
