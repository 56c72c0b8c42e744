//! Which packets a card takes (section 5.1.6.5.1 and .2).

use serde::{Deserialize, Serialize};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Most addresses that are compared; with more of a kind, all of that kind are taken.
pub(super) const MOST_ADDRESSES: usize = 64;

/// What a driver has chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    mac: Mac,
    pub(super) promiscuous: bool,
    pub(super) all_multicast: bool,
    pub(super) all_unicast: bool,
    pub(super) no_multicast: bool,
    pub(super) no_unicast: bool,
    pub(super) no_broadcast: bool,
    unicast: Table,
    multicast: Table,
}

/// Addresses that are taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    pub(super) addresses: Vec<Mac>,
    /// There were more of them than are compared.
    pub(super) overflow: bool,
}

impl Table {
    fn has(&self, mac: Mac) -> bool {
        self.overflow || self.addresses.contains(&mac)
    }
}

impl Filter {
    /// What a card takes before its driver says anything: everything.
    #[must_use]
    pub fn new(mac: Mac) -> Self {
        Self {
            mac,
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Table::default(),
            multicast: Table::default(),
        }
    }

    /// The card's address.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.mac
    }

    pub(super) fn set_mac(&mut self, mac: Mac) {
        self.mac = mac;
    }

    pub(super) fn set_tables(&mut self, unicast: Table, multicast: Table) {
        self.unicast = unicast;
        self.multicast = multicast;
    }

    /// Whether a packet is taken.
    #[must_use]
    pub fn takes(&self, packet: &[u8]) -> bool {
        if self.promiscuous {
            return true;
        }
        let Some(to) = packet.get(..6).and_then(|to| Mac::try_from(to).ok()) else {
            return false;
        };
        if to == [0xff; 6] {
            !self.no_broadcast
        } else if to[0] & 1 != 0 {
            !self.no_multicast && (self.all_multicast || self.multicast.has(to))
        } else {
            !self.no_unicast && (self.all_unicast || to == self.mac || self.unicast.has(to))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_switch_does_its_own() {
        let own = [2, 0, 0, 0, 0, 1];
        let other = [2, 0, 0, 0, 0, 2];
        let group = [3, 0, 0, 0, 0, 2];
        let all = [0xff; 6];
        let taken = |filter: &Filter| [own, other, group, all].map(|mac| filter.takes(&mac));
        let mut filter = Filter::new(own);
        assert_eq!(taken(&filter), [true; 4]);
        filter.promiscuous = false;
        assert_eq!(taken(&filter), [true, false, false, true]);
        assert!(!filter.takes(&[2, 0, 0]));
        filter.set_tables(
            Table {
                addresses: vec![other],
                overflow: false,
            },
            Table {
                addresses: vec![group],
                overflow: false,
            },
        );
        assert_eq!(taken(&filter), [true; 4]);
        (filter.no_unicast, filter.no_multicast, filter.no_broadcast) = (true, true, true);
        assert_eq!(taken(&filter), [false; 4]);
        let mut filter = Filter::new(own);
        filter.promiscuous = false;
        (filter.all_unicast, filter.all_multicast) = (true, true);
        assert_eq!(taken(&filter), [true; 4]);
    }
}
