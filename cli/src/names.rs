//! Finding what the user named, with a suggestion when it is not there.

use cenote_engine::{
    DomainError, DomainInfo, Error as Engine, Node, PoolInfo, VolumeId, VolumeInfo,
};
use cenote_pools::Error as Pools;

use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::out::quoted;
use crate::suggest;

impl Context {
    /// The pool of that name or UUID.
    ///
    /// # Errors
    /// There is none; the message says which one may have been meant.
    pub(crate) fn pool(&self, node: &Node, name: &str) -> Result<PoolInfo> {
        let error = match node.pool(name) {
            Ok(pool) => return Ok(pool),
            Err(error) => error,
        };
        if !matches!(error, Engine::Storage(Pools::PoolNotFound(_))) {
            return Err(error.into());
        }
        let pools = node.pools().unwrap_or_default();
        let near = suggest::did_you_mean(name, pools.iter().map(|pool| pool.name.as_str()));
        Err(with_suggestion(error.into(), near))
    }

    /// The domain of that name, UUID or id.
    ///
    /// # Errors
    /// There is none; the message says which one may have been meant.
    pub(crate) fn domain(&self, node: &Node, key: &str) -> Result<DomainInfo> {
        let error = match node.domain(key) {
            Ok(domain) => return Ok(domain),
            Err(error) => error,
        };
        if !matches!(error, Engine::Domain(DomainError::NotFound(_))) {
            return Err(error.into());
        }
        let domains = node.domains().unwrap_or_default();
        let near = suggest::did_you_mean(key, domains.iter().map(|domain| domain.name.as_str()));
        Err(with_suggestion(error.into(), near))
    }

    /// The volume that a name, `pool/name`, path or key means.
    ///
    /// # Errors
    /// There is none, or several; the message lists them, or says which may have been meant.
    pub(crate) fn volume_id(
        &self,
        node: &Node,
        name: &str,
        pool: Option<&str>,
    ) -> Result<VolumeId> {
        if let Some(pool) = pool {
            self.pool(node, pool)?;
        }
        let error = match node.resolve_volume(name, pool) {
            Ok(volume) => return Ok(volume),
            Err(error) => error,
        };
        match &error {
            Engine::Storage(Pools::VolumeNotFound { .. }) => {
                let near = nearest_volume(node, name, pool);
                Err(with_suggestion(error.into(), near))
            }
            Engine::Storage(Pools::VolumeAmbiguous { candidates, .. }) => {
                let list: Vec<String> = candidates
                    .iter()
                    .map(|id| quoted(&id.to_string()))
                    .collect();
                let first = candidates
                    .first()
                    .map(|id| quoted(&id.pool))
                    .unwrap_or_default();
                let failure: Failure = error.into();
                Err(failure
                    .fix(format!("say which one: {}", list.join(", ")))
                    .next(format!("cenote vol-info {} --pool {first}", quoted(name))))
            }
            _ => Err(error.into()),
        }
    }

    /// The volume itself.
    ///
    /// # Errors
    /// As [`Context::volume_id`].
    pub(crate) fn volume(&self, node: &Node, name: &str, pool: Option<&str>) -> Result<VolumeInfo> {
        Ok(node.volume(&self.volume_id(node, name, pool)?)?)
    }
}

fn with_suggestion(failure: Failure, near: Option<String>) -> Failure {
    match near {
        Some(near) => failure.why(near),
        None => failure,
    }
}

fn nearest_volume(node: &Node, name: &str, pool: Option<&str>) -> Option<String> {
    let pools = node.pools().unwrap_or_default();
    let wanted = pools
        .iter()
        .filter(|info| pool.is_none_or(|pool| pool == info.name));
    let names: Vec<String> = wanted
        .filter_map(|info| node.volumes(&info.name).ok())
        .flatten()
        .map(|volume| volume.name)
        .collect();
    suggest::did_you_mean(name, names.iter().map(String::as_str))
}
