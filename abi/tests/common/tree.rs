// SPDX-License-Identifier: GPL-2.0

//! A device tree on the host.

use luo_abi::tree::{
    Tree,
    TreeBuilder, //
};
use std::{
    collections::HashMap,
    ffi::CStr, //
};

/// A device tree that is nothing but its properties.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapTree {
    path: Vec<String>,
    pub properties: HashMap<(String, String), Vec<u8>>,
}

impl MapTree {
    pub fn set(&mut self, node: &CStr, name: &CStr, value: &[u8]) {
        let key = (text(node), text(name));
        self.properties.insert(key, value.to_vec());
    }

    pub fn remove(&mut self, node: &CStr, name: &CStr) {
        self.properties.remove(&(text(node), text(name)));
    }
}

fn text(string: &CStr) -> String {
    string.to_string_lossy().into_owned()
}

impl Tree for MapTree {
    fn property(&self, node: &CStr, name: &CStr) -> Option<&[u8]> {
        self.properties
            .get(&(text(node), text(name)))
            .map(|value| &**value)
    }
}

impl TreeBuilder for MapTree {
    type Error = ();

    fn begin_node(&mut self, name: &CStr) -> Result<(), ()> {
        assert_eq!(self.path.is_empty(), name.is_empty());
        self.path.push(text(name));
        Ok(())
    }

    fn end_node(&mut self) -> Result<(), ()> {
        self.path.pop().map(|_| ()).ok_or(())
    }

    fn property(&mut self, name: &CStr, value: &[u8]) -> Result<(), ()> {
        let path = match &*self.path.join("/") {
            "" => "/".to_string(),
            path => path.to_string(),
        };
        self.properties.insert((path, text(name)), value.to_vec());
        Ok(())
    }
}
