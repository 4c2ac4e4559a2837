//! The binary's part of `xvip backend`: lists backends, or gives an order and prints what came of it.

use lb_user::{
    admin::{backends::BackendReply, client, model, model::Status, render::backends as render},
    cli::{Global, backend::BackendArgs},
};

use crate::{Failure, colour, print, socket};

/// `xvip backend`
pub(crate) fn execute(global: &Global, args: &BackendArgs) -> Result<(), Failure> {
    let Some(command) = &args.command else {
        let socket = socket(global, &args.target)?;
        let status: Status = client::ask_for(&socket, &model::Command::Status)?;
        return print(&render::list(&status, colour()));
    };
    let (query, target) = command.query();
    let socket = socket(global, target)?;
    let reply: BackendReply = client::ask_for(&socket, &model::Command::Backend(query))?;
    print(&render::reply(&reply))
}
