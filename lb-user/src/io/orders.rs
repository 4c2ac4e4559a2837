//! Carries out the operator's orders about backends on the controller.

use crate::{
    admin::{
        backends::{BackendQuery, BackendReply, BackendWord},
        model::CommandError,
    },
    core::{
        controller::{Controller, Ordered, said},
        time::Timestamp,
    },
};

/// What comes of an order at `now`.
pub fn carry_out(
    controller: &mut Controller,
    now: Timestamp,
    query: &BackendQuery,
) -> Result<BackendReply, CommandError> {
    let order = query.order()?;
    let target = (query.name.as_str(), query.service.as_deref());
    let ordered = controller.order(now, target, order, query.force)?;
    let backends = ordered.iter().map(|ordered| {
        let Ordered {
            service,
            backend,
            word,
        } = ordered;
        BackendWord {
            service: service.clone(),
            backend: backend.clone(),
            now: said(word, now),
        }
    });
    Ok(BackendReply {
        backends: backends.collect(),
        notes: others(controller).into_iter().collect(),
    })
}

/// That the other nodes have to be told, if there are any.
fn others(controller: &Controller) -> Option<String> {
    let peers = controller.config().peers.iter();
    let names: Vec<_> = peers.map(|peer| peer.name.as_str()).collect();
    (!names.is_empty()).then(|| {
        format!(
            "this node only: give the same order on {}, so that all nodes choose the same backends",
            names.join(", ")
        )
    })
}
