'use strict';
// The cluster master: keeps WORKERS (default 2) workers alive, and on SIGHUP replaces them one by
// one with workers of the release that `current` points at by then.
//
//   SIGHUP ─► follow `current` ─► for each worker: fork ─► wait until it listens ─► drain the old one
//      └──── during a roll: exactly one more roll afterwards, however many signals came
//
// It refuses to judge. Like the masters people run, it replaces the workers whether or not the new
// ones live; a worker that dies is forked again REFORK_MS later, for as long as it takes. Whether a
// release is good is for the agent to find out.
//
// It requires node's own modules only. They are part of the binary, so a master may outlive the
// release that it was started from, and its dependencies: a reload is enough when they change.
//
// behaviour.json in the release that is served when the signal comes says what the signal does
// - "reload": as above; the default.
// - "ignore": nothing.
// - "die": the master exits with 1.
// - "keep-directory": replaces the workers and does not follow `current`. The classic mistake: new
//   processes, old code.

const cluster = require('cluster');
const fs = require('fs');
const path = require('path');

const WORKERS = Number(process.env.WORKERS || 2);
const REFORK_MS = 200;
// A worker that has not listened by then is counted as replaced: the roll must end.
const LISTEN_MAX_MS = 5000;
// What is left of an old worker is killed after this. Twice both limits, for two workers, stays
// within the recipe's `timeout_s`.
const DRAIN_MAX_MS = 4000;

// The logical directory, `…/current`. process.cwd() would be the release behind it for ever.
const home = process.env.PWD;
const pidFile = path.join(home, 'run', 'app.pid');

let release = fs.realpathSync(home);
const slots = Array.from({ length: WORKERS }, () => ({ worker: null, refork: null }));
let rolling = false;
let again = null;
let stopping = false;

function log(message) {
  console.log(`${new Date().toISOString()} master ${process.pid}: ${message}`);
}

function follow() {
  process.chdir(home);
  release = fs.realpathSync(home);
  cluster.setupPrimary({ exec: path.join(release, 'server.js'), cwd: release });
}

function fork(slot) {
  clearTimeout(slot.refork);
  // PWD as the worker's directory really is: only the master goes by the logical one.
  const worker = cluster.fork({ PWD: release });
  slot.worker = worker;
  worker.listens = false;
  worker.once('listening', () => {
    worker.listens = true;
  });
  // A message to a worker that is just dying; its exit is what counts.
  worker.on('error', (error) => log(`worker ${worker.process.pid}: ${error.message}`));
  worker.once('exit', (code, signal) => {
    if (slot.worker !== worker || stopping) return;
    log(`worker ${worker.process.pid} ended (${signal || code}), another in ${REFORK_MS} ms`);
    slot.refork = setTimeout(() => fork(slot), REFORK_MS);
  });
  return worker;
}

// Resolves when the worker emits one of `events`, or after `limitMs`.
function first(worker, events, limitMs) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, limitMs);
    for (const event of events) {
      worker.once(event, () => {
        clearTimeout(timer);
        resolve();
      });
    }
  });
}

// Lets a worker finish what it has, then it is gone. The messages are explained in worker.js.
async function drain(worker) {
  if (worker.isDead()) return;
  const gone = first(worker, ['exit'], DRAIN_MAX_MS);
  if (worker.listens) {
    worker.on('message', ({ tell }) => {
      if (tell === 'stopped' && worker.isConnected()) worker.send({ ask: 'finish' }, () => {});
    });
    if (worker.isConnected()) worker.send({ ask: 'drain' }, () => {});
    await gone;
  }
  if (worker.isDead()) return;
  log(`worker ${worker.process.pid} is killed`);
  const killed = first(worker, ['exit'], DRAIN_MAX_MS);
  worker.process.kill('SIGKILL');
  await killed;
}

async function roll(mode) {
  if (mode === 'reload') follow();
  for (const slot of slots) {
    if (stopping) return;
    const old = slot.worker;
    const fresh = fork(slot);
    await first(fresh, ['listening', 'exit'], LISTEN_MAX_MS);
    if (stopping) return;
    await drain(old);
  }
  log(`workers replaced, ${release}`);
}

async function hangUp() {
  const mode = onHangup();
  if (mode === 'ignore') return;
  if (mode === 'die') process.exit(1);
  again = mode;
  if (rolling) return;
  rolling = true;
  while (again !== null && !stopping) {
    const next = again;
    again = null;
    try {
      await roll(next);
    } catch (error) {
      log(`could not roll: ${error.message}`);
    }
  }
  rolling = false;
}

function onHangup() {
  try {
    return JSON.parse(fs.readFileSync(path.join(release, 'behaviour.json'), 'utf8')).on_hangup || 'reload';
  } catch {
    return 'reload';
  }
}

async function stop() {
  if (stopping) return;
  stopping = true;
  for (const slot of slots) clearTimeout(slot.refork);
  await Promise.all(Object.values(cluster.workers).map(drain));
  fs.rmSync(pidFile, { force: true });
  process.exit(0);
}

// A reader sees a whole pid or the one before, never half of one.
function writePid() {
  const draft = `${pidFile}.${process.pid}`;
  fs.writeFileSync(draft, `${process.pid}\n`);
  fs.renameSync(draft, pidFile);
}

// A worker that refuses a connection hands it back to the master only under this policy.
cluster.schedulingPolicy = cluster.SCHED_RR;
// Before the pid file: whoever finds the pid may signal it at once.
process.on('SIGHUP', hangUp);
process.on('SIGTERM', stop);
process.on('SIGINT', stop);
follow();
writePid();
for (const slot of slots) fork(slot);
