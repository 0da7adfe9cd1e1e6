'use strict';
// Keeps the master alive, where no systemd does it: started by bin/start, in a session of its own.
//
// A master that ends with a failure is started again RESTART_MS later, from whatever `current` points
// at by then. A master that exits with 0 or is ended by SIGTERM was told to: the supervisor ends too.

const fs = require('fs');
const path = require('path');
const { spawn } = require('child_process');

const RESTART_MS = 200;

// The logical directory, `…/current`.
const home = process.env.PWD;
let master = null;
let stopping = false;

function log(message) {
  console.log(`${new Date().toISOString()} supervisor ${process.pid}: ${message}`);
}

function restart(why) {
  master = null;
  if (stopping) process.exit(0);
  log(`${why}, another master in ${RESTART_MS} ms`);
  setTimeout(start, RESTART_MS);
}

function start() {
  let release;
  try {
    release = fs.realpathSync(home);
  } catch (error) {
    return restart(error.message);
  }
  master = spawn(process.execPath, [path.join(release, 'master.js')], {
    cwd: release,
    env: { ...process.env, PWD: home },
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  master.once('error', (error) => restart(error.message));
  master.once('exit', (code, signal) => {
    if (code === 0 || signal === 'SIGTERM') process.exit(0);
    restart(`master ended (${signal || code})`);
  });
}

function stop() {
  stopping = true;
  if (master === null) process.exit(0);
  master.kill('SIGTERM');
}

process.on('SIGTERM', stop);
process.on('SIGINT', stop);
// It outlives the release that it was started from, and must not hold on to its directory.
process.chdir('/');
start();
