'use strict';
// What every worker does around the app's own requests: says which revision it serves, listens,
// and leaves without cutting a request.
//
//   master                     worker
//     │ { ask: 'drain' } ───────► stops listening; answers with `Connection: close` from now on
//     │ ◄─── { tell: 'stopped' }
//     │ { ask: 'finish' } ──────► every connection that was on its way here has now arrived:
//     │                           leaves when the last one is closed
//
// Node's own `worker.disconnect()` is not used: it closes idle keep-alive connections at once, and
// one of those may have a request on its way.
//
// Files beside this one, read once, when the worker starts
// - .towline-revision: the full revision of this release, written by the agent.
// - run/port: the port, as decimal text. The agent hands an app PATH, HOME, LANG and PWD and nothing
//   else, so the port cannot be a variable there. `run` is a shared directory: every release sees
//   the same one. PORT wins where it is set; without either it is 3000.
// - behaviour.json: how this revision misbehaves. Tests commit another one, see `BEHAVIOURS`.
//
// It requires node's own modules only, so that an app without dependencies can use it.

const fs = require('fs');
const http = require('http');
const net = require('net');
const path = require('path');

// Idle connections are closed this long after a drain began. A client that says nothing for so long
// has no request on its way, or is at the same risk from any server's keep-alive limit.
const IDLE_AFTER_DRAIN_MS = 2000;

// Above the 60 s after which common load balancers drop an idle connection themselves: whoever
// closes first must not be the side that may be sent a request.
const KEEP_ALIVE_MS = 65000;

// What `worker` in behaviour.json may say.
const BEHAVIOURS = {
  // Serves.
  ok: {},
  // Dies before it listens.
  crash: { crashBeforeListening: true },
  // "crash-after-ms:N" listens, and dies N ms later.
  'crash-after-ms': { crashAfterListening: true },
  // Serves, and says that it is not healthy.
  unhealthy: { status: 'unhealthy' },
  // Serves, and names a revision that nobody deployed.
  'wrong-revision': { revision: '0'.repeat(40) },
  // Listens, accepts, and never answers.
  hang: { silent: true },
};

function read(name) {
  try {
    return fs.readFileSync(path.join(__dirname, name), 'utf8').trim();
  } catch (error) {
    if (error.code === 'ENOENT') return '';
    throw error;
  }
}

function behaviour() {
  const [name, argument] = (JSON.parse(read('behaviour.json') || '{}').worker || 'ok').split(':');
  if (!Object.hasOwn(BEHAVIOURS, name)) throw new Error(`behaviour.json: no such worker: ${name}`);
  return { ...BEHAVIOURS[name], delayMs: Number(argument) };
}

const faults = behaviour();
const revision = faults.revision || read('.towline-revision') || 'unknown';

// Returns what /healthz answers: a status code, and the body as an object.
function health() {
  const status = faults.status || 'ok';
  return { code: status === 'ok' ? 200 : 503, body: { status, revision, pid: process.pid } };
}

// Listens, and passes every request to `handler(req, res)`.
function serve(handler) {
  if (faults.crashBeforeListening) throw new Error('this revision crashes when it starts');

  const server = http.createServer();
  server.keepAliveTimeout = KEEP_ALIVE_MS;
  drainWhenAsked(server);
  server.on('request', (req, res) => {
    if (faults.silent) return;
    res.setHeader('x-revision', revision);
    handler(req, res);
  });
  server.listen(Number(process.env.PORT || read('run/port') || 3000), '127.0.0.1', () => {
    if (!faults.crashAfterListening) return;
    setTimeout(() => {
      throw new Error(`this revision crashes after ${faults.delayMs} ms`);
    }, faults.delayMs);
  });
}

function drainWhenAsked(server) {
  const sockets = new Set();
  const answers = new Set();
  let draining = false;
  let finishing = false;

  const leaveIfDone = () => {
    if (finishing && sockets.size === 0 && process.connected) process.disconnect();
  };

  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.once('close', () => {
      sockets.delete(socket);
      leaveIfDone();
    });
  });
  server.on('request', (_req, res) => {
    if (draining) res.setHeader('Connection', 'close');
    answers.add(res);
    res.once('close', () => answers.delete(res));
  });

  const closeIdle = () => {
    const busy = new Set([...answers].map((res) => res.socket));
    for (const socket of sockets) if (!busy.has(socket)) socket.destroy();
  };

  process.on('message', ({ ask }) => {
    if (ask === 'drain' && !draining) {
      draining = true;
      for (const res of answers) if (!res.headersSent) res.setHeader('Connection', 'close');
      // Not `server.close()`, which closes idle connections at once.
      net.Server.prototype.close.call(server);
      // The timers hold nobody back: the worker leaves when its channel and sockets are closed.
      setTimeout(() => setInterval(closeIdle, 100).unref(), IDLE_AFTER_DRAIN_MS).unref();
      process.send({ tell: 'stopped' });
    }
    if (ask === 'finish') {
      finishing = true;
      leaveIfDone();
    }
  });
}

module.exports = { health, revision, serve };
