//! Carries out the operator's orders about backends on the controller.

use crate::{
    admin::{
        backends::{BackendQuery, BackendReply, BackendWord, Request},
        model::CommandError,
    },
    core::{
        controller::{Changed, Controller, Ordered, said},
        time::Timestamp,
    },
};

/// What comes of an order at `now`.
pub fn carry_out(
    controller: &mut Controller,
    now: Timestamp,
    query: &BackendQuery,
) -> Result<BackendReply, CommandError> {
    let target = (query.name.as_str(), query.service.as_deref());
    let order = match query.request()? {
        Request::Order(order) => order,
        Request::Add(new) => {
            let note = new.as_ref().map(|_| {
                "it is in no configuration: write it there, too, and reload (its order is then void)"
            });
            let added = controller.add_backend(now, target, new)?;
            return Ok(changed(controller, added, note));
        }
        Request::Remove { drain } => {
            let removed = controller.remove_backend(now, target, drain, query.force)?;
            return Ok(changed(controller, removed, None));
        }
    };
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

/// The answer to an addition or a removal.
fn changed(controller: &Controller, changed: Changed, note: Option<&str>) -> BackendReply {
    let Changed {
        service,
        backend,
        now,
    } = changed;
    let notes = note.map(str::to_owned).into_iter();
    BackendReply {
        backends: vec![BackendWord {
            service,
            backend,
            now,
        }],
        notes: notes.chain(others(controller)).collect(),
    }
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
