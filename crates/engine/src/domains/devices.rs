//! The devices of a domain as commands show them.

use cenote_model::domain::Domain;
use serde::{Deserialize, Serialize};

use super::change::Scope;
use crate::error::Result;
use crate::node::Node;
use crate::supervisor::network::{CardReport, CardTraffic, Lease};
use crate::supervisor::protocol::{Reply, Request};

/// A network card of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardInfo {
    /// The host's device while it runs, where there is one.
    pub device: Option<String>,
    /// What it is joined to: `user`, `bridge`, and so on.
    pub kind: String,
    /// The network or bridge.
    pub source: Option<String>,
    /// Its model.
    pub model: String,
    /// Its address.
    pub mac: Option<String>,
    /// Whether the cable is in, as the document says it.
    pub link: bool,
    /// Addresses that the user-mode network gave the guest.
    pub leases: Vec<Lease>,
    /// What went through it, as far as it is counted.
    pub traffic: Option<CardTraffic>,
}

impl Node {
    /// The network cards of a domain, in the document's order; of a running one with how their
    /// networks stand.
    ///
    /// # Errors
    /// There is no such domain or document; its supervisor does not answer.
    pub fn domain_cards(&self, key: &str, scope: Scope) -> Result<Vec<CardInfo>> {
        let row = self.domain_row(key)?;
        let live = row.is_active() && scope != Scope::Config;
        let document = self.scoped_document(key, scope)?;
        let reports = match live && !self.is_read_only() {
            true => match self.asked(&row, "ask", &Request::Cards)? {
                Reply::Cards(reports) => reports,
                _ => Vec::new(),
            },
            false => Vec::new(),
        };
        Ok(cards_of(&document, reports))
    }
}

fn cards_of(document: &Domain, reports: Vec<CardReport>) -> Vec<CardInfo> {
    let reports = reports.into_iter().map(Some).chain(std::iter::repeat(None));
    let cards = document.devices.interfaces.iter().zip(reports);
    cards
        .map(|(card, report)| {
            let report = report.unwrap_or_default();
            let target = card.target.as_ref().map(|target| target.dev.clone());
            CardInfo {
                device: report.device.or(target),
                kind: card.kind.to_string(),
                source: card.network().or(card.bridge()).map(str::to_owned),
                model: card
                    .model
                    .as_ref()
                    .map_or("virtio".to_owned(), |m| m.kind.clone()),
                mac: card.mac.as_ref().map(|mac| mac.address.to_string()),
                link: card
                    .link
                    .as_ref()
                    .is_none_or(|link| link.state == cenote_model::domain::LinkState::Up),
                leases: report.leases,
                traffic: report.traffic,
            }
        })
        .collect()
}
