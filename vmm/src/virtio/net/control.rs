//! The control queue (section 5.1.6.5).

use super::{
    F_CTRL_MAC_ADDR, F_CTRL_RX, F_CTRL_RX_EXTRA, F_GUEST_ANNOUNCE, F_MQ, Mac, Served, Shared,
    filter::{MOST_ADDRESSES, Table},
};
use crate::{
    memory::GuestMemory,
    virtio::{Chain, QueueError, borrowed},
};
use std::{
    os::fd::BorrowedFd,
    sync::{Arc, atomic::Ordering},
};

const CLASS_RX: u8 = 0;
const CLASS_MAC: u8 = 1;
const CLASS_ANNOUNCE: u8 = 3;
const CLASS_MQ: u8 = 4;
const OK: u8 = 0;
const ERROR: u8 = 1;

/// The longest command that is read: two tables of as many addresses as are compared, and a
/// little of what overflows.
const LONGEST: u64 = 64 * 1024;

/// Serves the queue.
pub(super) struct Control {
    shared: Arc<Shared>,
    served: Served,
    features: u64,
    chain: Chain,
}

impl Control {
    pub(super) fn new(shared: Arc<Shared>, served: Served, features: u64) -> Self {
        Self {
            shared,
            served,
            features,
            chain: Chain::default(),
        }
    }

    pub(super) fn kick(&self) -> BorrowedFd<'_> {
        borrowed(&self.served.active.kick)
    }

    pub(super) fn serve(&mut self) -> Result<(), QueueError> {
        let Self {
            shared,
            served: Served { memory, active },
            features,
            chain,
        } = self;
        active.serve(memory, chain, |chain| {
            if chain.writable_length() < 1 {
                return Err(QueueError::Request(chain.head));
            }
            let done = carry_out(shared, *features, memory, chain).is_some();
            chain.write(memory, 0, &[if done { OK } else { ERROR }]);
            Ok(1)
        })
    }
}

/// Does what the command says; `None` if it is not known, not negotiated or malformed.
fn carry_out(shared: &Shared, features: u64, memory: &GuestMemory, chain: &Chain) -> Option<()> {
    let length = chain.readable_length().min(LONGEST);
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    let length = chain.read(memory, 0, &mut bytes);
    let (head, data) = bytes.get(..length)?.split_at_checked(2)?;
    let has = |feature| (features & feature != 0).then_some(());
    match (head[0], head[1]) {
        (CLASS_RX, command @ 0..=5) => {
            has(if command < 2 {
                F_CTRL_RX
            } else {
                F_CTRL_RX_EXTRA
            })?;
            let on = match data {
                [0] => false,
                [1] => true,
                _ => return None,
            };
            let mut filter = shared.filter.write();
            *match command {
                0 => &mut filter.promiscuous,
                1 => &mut filter.all_multicast,
                2 => &mut filter.all_unicast,
                3 => &mut filter.no_multicast,
                4 => &mut filter.no_unicast,
                _ => &mut filter.no_broadcast,
            } = on;
        }
        (CLASS_MAC, 0) => {
            has(F_CTRL_RX)?;
            let (unicast, rest) = table(data)?;
            let (multicast, rest) = table(rest)?;
            rest.is_empty().then_some(())?;
            shared.filter.write().set_tables(unicast, multicast);
        }
        (CLASS_MAC, 1) => {
            has(F_CTRL_MAC_ADDR)?;
            let mac: Mac = data.try_into().ok()?;
            (mac[0] & 1 == 0).then_some(())?;
            shared.filter.write().set_mac(mac);
        }
        (CLASS_ANNOUNCE, 0) => {
            has(F_GUEST_ANNOUNCE)?;
            shared.announce.store(false, Ordering::SeqCst);
        }
        (CLASS_MQ, 0) => {
            has(F_MQ)?;
            let pairs = u16::from_le_bytes(data.try_into().ok()?);
            (1..=shared.most_pairs).contains(&pairs).then_some(())?;
            shared.use_pairs(pairs);
        }
        _ => return None,
    }
    Some(())
}

/// A table of addresses and what comes after it.
fn table(data: &[u8]) -> Option<(Table, &[u8])> {
    let (count, rest) = data.split_at_checked(4)?;
    let count = u32::from_le_bytes(count.try_into().ok()?) as usize;
    let (bytes, rest) = rest.split_at_checked(count.checked_mul(6)?)?;
    let addresses = bytes.chunks_exact(6).take(MOST_ADDRESSES);
    let table = Table {
        addresses: addresses.filter_map(|mac| mac.try_into().ok()).collect(),
        overflow: count > MOST_ADDRESSES,
    };
    Some((table, rest))
}
