// SPDX-License-Identifier: GPL-2.0

//! A connection of a client: lines in, lines and descriptors out, never waiting.

use crate::protocol::MAX_COMMAND;
use liveupdate::{
    handoff::{
        self,
        ReceivedFd, //
    },
    Errno, //
};
use nix::poll::PollFlags;
use std::{
    collections::VecDeque,
    io,
    os::{
        fd::{
            AsFd,
            BorrowedFd,
            OwnedFd, //
        },
        unix::net::UnixStream, //
    },
};

/// How many bytes may wait for a peer that does not read.
const MAX_WAITING: usize = 4 << 20;

/// How many descriptors may wait for the command that they belong to.
const MAX_DESCRIPTORS: usize = 8;

/// A connection.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    uid: u32,
    input: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    output: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    waiting: usize,
    /// The peer sends nothing any more.
    input_ended: bool,
    /// It is to be dropped when the output is out.
    ending: bool,
    broken: bool,
}

impl Connection {
    /// A new connection of a user.
    ///
    /// # Errors
    ///
    /// If the socket cannot be made non-blocking.
    pub fn new(socket: UnixStream, uid: u32) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            uid,
            input: Vec::new(),
            descriptors: Vec::new(),
            output: VecDeque::new(),
            waiting: 0,
            input_ended: false,
            ending: false,
            broken: false,
        })
    }

    /// Whose it is.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// What to poll for.
    pub fn wants(&self) -> PollFlags {
        let mut wants = PollFlags::empty();

        // As long as a line waits for its turn, the rest waits in the kernel.
        if !self.input_ended && self.input.len() <= MAX_COMMAND {
            wants |= PollFlags::POLLIN;
        }
        if !self.output.is_empty() {
            wants |= PollFlags::POLLOUT;
        }
        wants
    }

    /// Whether there is nothing more to expect from it.
    pub fn has_ended(&self) -> bool {
        self.broken || self.input_ended || self.ending && self.output.is_empty()
    }

    /// Reads what has come. False if the connection is at its end.
    pub fn fill(&mut self) -> bool {
        let mut buffer = [0; 4096];

        while self.input.len() <= MAX_COMMAND {
            match handoff::receive(&self.socket, &mut buffer) {
                Ok(received) if received.len == 0 => {
                    self.input_ended = true;
                    return false;
                }
                Ok(received) => {
                    self.input.extend_from_slice(&buffer[..received.len]);
                    for fd in received.fds {
                        // A session that somebody sends is not wanted, and closing this
                        // descriptor of it takes nothing from the holders of others.
                        if let ReceivedFd::Other(fd) = fd {
                            if self.descriptors.len() < MAX_DESCRIPTORS {
                                self.descriptors.push(fd);
                            }
                        }
                    }
                }
                Err(err) if err.errno() == Errno::EAGAIN => break,
                Err(_) => {
                    self.broken = true;
                    return false;
                }
            }
        }
        true
    }

    /// The next line that has come, without the newline.
    ///
    /// # Errors
    ///
    /// If it is too long.
    pub fn line(&mut self) -> Result<Option<Vec<u8>>, &'static str> {
        if self.ending {
            return Ok(None);
        }
        match self.input.iter().position(|&byte| byte == b'\n') {
            Some(end) if end <= MAX_COMMAND => {
                let mut line: Vec<u8> = self.input.drain(..=end).collect();
                line.pop();
                Ok(Some(line))
            }
            None if self.input.len() <= MAX_COMMAND => Ok(None),
            _ => Err("the command is too long"),
        }
    }

    /// The descriptors of a command that has so many.
    ///
    /// Which lines they came with cannot be told, as a read may get several lines at once; but they
    /// come in order.
    pub fn descriptors(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        (self.descriptors.len() >= count).then(|| self.descriptors.drain(..count).collect())
    }

    /// Sends a line, with a descriptor. What cannot be sent at once waits.
    pub fn send(&mut self, line: Vec<u8>, descriptor: Option<OwnedFd>) {
        self.waiting += line.len();
        if self.waiting > MAX_WAITING {
            // It does not read, so it misses something in any case.
            self.broken = true;
            self.output.clear();
            return;
        }
        self.output.push_back((line, descriptor));
        self.flush();
    }

    /// Sends what waits. False if the connection is at its end.
    pub fn flush(&mut self) -> bool {
        while let Some((line, descriptor)) = self.output.front_mut() {
            let with = descriptor.as_ref().map(AsFd::as_fd);
            match handoff::send(&self.socket, line, with.as_slice()) {
                Ok(sent) => {
                    // It went with the first byte.
                    *descriptor = None;
                    line.drain(..sent);
                    self.waiting = self.waiting.saturating_sub(sent);
                    if line.is_empty() {
                        self.output.pop_front();
                    }
                }
                Err(err) if err.errno() == Errno::EAGAIN => break,
                Err(_) => {
                    self.broken = true;
                    return false;
                }
            }
        }
        !(self.ending && self.output.is_empty())
    }

    /// Takes no more commands; the connection ends when everything is sent.
    pub fn end(&mut self) {
        self.ending = true;
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{
        Read,
        Write, //
    };

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::new(ours, 0).unwrap(), theirs)
    }

    #[test]
    fn lines_in_pieces() {
        let (mut conn, mut peer) = pair();

        peer.write_all(b"one\ntw").unwrap();
        assert!(conn.fill());
        assert_eq!(conn.line(), Ok(Some(b"one".to_vec())));
        assert_eq!(conn.line(), Ok(None));
        peer.write_all(b"o\n\n").unwrap();
        drop(peer);
        assert!(!conn.fill());
        assert_eq!(conn.line(), Ok(Some(b"two".to_vec())));
        assert_eq!(conn.line(), Ok(Some(Vec::new())));
        assert_eq!(conn.line(), Ok(None));
        assert!(conn.has_ended());
    }

    #[test]
    fn long_lines() {
        let (mut conn, mut peer) = pair();

        peer.write_all(&[b'x'; MAX_COMMAND]).unwrap();
        peer.write_all(b"\n").unwrap();
        assert!(conn.fill());
        assert_eq!(conn.line().unwrap().unwrap().len(), MAX_COMMAND);
        peer.write_all(&[b'x'; MAX_COMMAND + 1]).unwrap();
        assert!(conn.fill());
        assert!(conn.line().is_err());
        assert!(!conn.wants().contains(PollFlags::POLLIN));
    }

    #[test]
    fn descriptors_go_with_the_first_byte() {
        let (mut conn, peer) = pair();
        let (reader, writer) = nix::unistd::pipe().unwrap();

        conn.send(b"a\n".to_vec(), None);
        conn.send(b"b\n".to_vec(), Some(writer));
        let mut buffer = [0; 3];
        let received = handoff::receive(&peer, &mut buffer).unwrap();
        assert_eq!(&buffer[..received.len], b"a\nb");
        assert_eq!(received.fds.len(), 1);
        drop(received);
        assert_eq!(nix::unistd::read(&reader, &mut buffer), Ok(0));
    }

    #[test]
    fn one_that_does_not_read() {
        let (mut conn, _peer) = pair();

        for _ in 0..200 {
            conn.send(vec![b'x'; 65536], None);
        }
        assert!(conn.has_ended());
    }

    #[test]
    fn last_words() {
        let (mut conn, mut peer) = pair();

        conn.send(b"bye\n".to_vec(), None);
        conn.end();
        assert!(conn.has_ended());
        drop(conn);
        let mut text = String::new();
        peer.read_to_string(&mut text).unwrap();
        assert_eq!(text, "bye\n");
    }

    #[test]
    fn what_peers_send_beside() {
        let (mut conn, peer) = pair();
        let fd = peer.as_fd();

        handoff::send(&peer, b"x\ny\n", &[fd; 20]).unwrap();
        assert!(conn.fill());
        assert_eq!(conn.descriptors(0).unwrap().len(), 0);
        assert_eq!(conn.descriptors(2).unwrap().len(), 2);
        assert_eq!(conn.descriptors.len(), MAX_DESCRIPTORS - 2);
        assert!(conn.descriptors(MAX_DESCRIPTORS).is_none());
    }
}
