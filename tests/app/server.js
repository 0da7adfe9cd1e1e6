'use strict';
// The worker: a small express app. What is common to every worker is in worker.js.

const express = require('express');
const helmet = require('helmet');
const _ = require('lodash');
const ms = require('ms');
const { nanoid } = require('nanoid');
const { health, revision, serve } = require('./worker');

// So that a slow request has an end even when nobody waits for it.
const SLOW_MAX_MS = ms('30s');

const app = express();
app.use(helmet());

app.get('/healthz', (_req, res) => {
  const { code, body } = health();
  res.status(code).json(body);
});

app.get('/', (_req, res) => {
  res.json({
    app: _.startCase('towline-test-app'),
    request: nanoid(),
    revision: _.truncate(revision, { length: 12, omission: '' }),
    uptime: ms(Math.round(process.uptime() * 1000), { long: true }),
  });
});

app.get('/slow', (req, res) => {
  const waitMs = _.clamp(Number(req.query.ms) || 0, 0, SLOW_MAX_MS);
  setTimeout(() => res.json({ waited: ms(waitMs) }), waitMs);
});

serve(app);
