//! Tests of the controller as a whole: it runs on an imitation of a node, whose kernel carries
//! out actions, loses addresses, is changed by others and fails.

mod duplicates;
mod followed;
mod groups;
mod health;
mod histories;
mod names;
mod network;
mod node;
mod notify;
mod operator;
mod ownership;
mod reload;
mod roster;
mod tables;
mod tracking;
