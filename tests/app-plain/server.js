'use strict';
// The worker without dependencies: the same routes as the express app's, for tests that have no use
// for an install. worker.js, master.js, supervisor.js and bin/start are the express app's own.

const { health, revision, serve } = require('./worker');

const SLOW_MAX_MS = 30000;

function json(res, code, body) {
  const text = JSON.stringify(body);
  res.writeHead(code, {
    'Content-Type': 'application/json; charset=utf-8',
    'Content-Length': Buffer.byteLength(text),
  });
  res.end(text);
}

serve((req, res) => {
  const url = new URL(req.url, 'http://localhost');
  switch (url.pathname) {
    case '/healthz': {
      const { code, body } = health();
      return json(res, code, body);
    }
    case '/':
      return json(res, 200, { app: 'Towline Test App', revision: revision.slice(0, 12) });
    case '/slow': {
      const waitMs = Math.min(Math.max(Number(url.searchParams.get('ms')) || 0, 0), SLOW_MAX_MS);
      return setTimeout(() => json(res, 200, { waited_ms: waitMs }), waitMs);
    }
    default:
      return json(res, 404, { error: 'not found' });
  }
});
