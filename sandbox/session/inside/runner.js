// The runner for Node.js 14 and newer: `node runner.js FD`. Node's own modules only.
//
// Cells are evaluated as the developer tools' console does (V8's replMode): `await` at the top, `const` and `let` that may be said
// again, the last expression's value. Frames in both directions: two lengths (!IQ), JSON, buffers. While a cell runs the host only
// answers questions, so the socket is read by whoever waits: the event loop between cells, a question within one.
'use strict';

const fs = require('fs');
const inspector = require('inspector');
const util = require('util');
const vm = require('vm');
const { createRequire } = require('module');

const channel = Number(process.argv[2]);
const HEAD = 12;
const NEAR = 200; // lines of a function's source that are shown
const SETTLE_MS = 20; // what V8's watchdog of signals gets to tell of one
const MIMES = { _toHtml: 'text/html', _toSvg: 'image/svg+xml', _toPng: 'image/png', _toJpeg: 'image/jpeg', _toMarkdown: 'text/markdown', _toLatex: 'text/latex' };
const RAW = /^(image\/(png|jpeg|gif)|application\/pdf)$/;

// Frames

function send(message) {
  const text = Buffer.from(JSON.stringify({ ...message, buffers: [] }));
  const head = Buffer.alloc(HEAD);
  head.writeUInt32BE(text.length, 0);
  writeAll(Buffer.concat([head, text]));
}

function writeAll(data) {
  for (let done = 0; done < data.length; ) done += fs.writeSync(channel, data, done);
}

function readExactly(size) {
  const data = Buffer.alloc(size);
  for (let done = 0; done < size; ) {
    const count = fs.readSync(channel, data, done, size - done, null);
    if (!count) process.exit(0);
    done += count;
  }
  return data;
}

function restOf(head) {
  const message = JSON.parse(readExactly(head.readUInt32BE(0)).toString());
  readExactly(Number(head.readBigUInt64BE(4)));
  return message;
}

let asked = 0;

function ask(message) {
  const id = ++asked;
  send({ ...message, id });
  for (;;) {
    const answer = restOf(readExactly(HEAD));
    if (answer.id === id) return answer;
  }
}

// What cells may call

let enough = false;

const LARGEST = 8 << 20;

/** The bundle without texts that no front end shows for their size; that one is left out is said. */
function fitting(data) {
  const large = Object.keys(data).filter((mime) => typeof data[mime] === 'string' && data[mime].length > LARGEST);
  if (!large.length) return data;
  const kept = Object.fromEntries(Object.entries(data).filter(([mime]) => !large.includes(mime)));
  const plain = kept['text/plain'] || String(data['text/plain'] || '').slice(0, 1000);
  return { ...kept, 'text/plain': `${plain} (${large.join(', ')}: too large to show)` };
}

function post(data, metadata, result) {
  data = fitting(data);
  if (!enough) enough = Boolean(ask({ op: 'display', data, metadata: metadata || {}, result: Boolean(result) }).enough);
}

function bundleOf(value) {
  const data = {};
  if (value !== null && typeof value === 'object') {
    if (typeof value._toMime === 'function') Object.assign(data, value._toMime());
    for (const [method, mime] of Object.entries(MIMES)) if (typeof value[method] === 'function') data[mime] = value[method]();
  }
  if (!('text/plain' in data)) data['text/plain'] = util.inspect(value);
  for (const [mime, each] of Object.entries(data)) if (Buffer.isBuffer(each)) data[mime] = RAW.test(mime) ? each.toString('base64') : each.toString();
  return data;
}

/** Show a value as the end of a cell does; with {raw: true} it is a MIME bundle already. */
function display(value, options) {
  post(options && options.raw ? value : bundleOf(value), options && options.metadata);
}

/** Ask the person, as browsers' prompt(); null when nobody can be asked. */
function prompt(question, preset) {
  const { text } = ask({ op: 'input', prompt: question === undefined ? '' : `${question} `, password: false });
  return text === undefined ? (preset === undefined ? null : preset) : text;
}

let last = 1;

/** Before output to another stream than the last: wait until the host has shown what was printed so far. */
function inOrder(stream, fd) {
  const write = stream.write.bind(stream);
  stream.write = (...given) => {
    if (last !== fd && running) {
      last = fd;
      ask({ op: 'sync' });
    }
    return write(...given);
  };
}

// V8's console has no import(): the cell's calls of it are ours, which looks where the cell's own directory would.
const CALLS_OF_IMPORT = /("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`|\/\/.*|\/\*[^]*?\*\/)|(?<![\w$.])import(?=\s*\()/g;

function makeImport() {
  const warn = process.emitWarning;
  process.emitWarning = (text, ...rest) => (/USE_MAIN_CONTEXT_DEFAULT_LOADER/.test(text) ? undefined : warn.call(process, text, ...rest)); // it is ours
  const loader = vm.constants && vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER;
  if (loader) return new vm.Script('(name) => import(name)', { filename: `${process.cwd()}/cell`, importModuleDynamically: loader }).runInThisContext();
  return (name) => import(/^(node:|data:|https?:|file:)/.test(name) ? name : createRequire(`${process.cwd()}/`).resolve(name)); // before 20.12
}

// One cell

const session = new inspector.Session();
session.connect();
let running = null;
let number = 0;

function call(method, parameters) {
  return new Promise((resolve, reject) => session.post(method, parameters, (err, result) => (err ? reject(err) : resolve(result))));
}

/** As `call`, for what V8 answers at once. */
function now(method, parameters) {
  let found = {};
  session.post(method, parameters, (err, result) => { found = err ? {} : result; });
  return found;
}

/** The value itself of one that the inspector describes. */
function valueOf(remote) {
  const argument = remote.objectId ? { objectId: remote.objectId } : 'unserializableValue' in remote ? { unserializableValue: remote.unserializableValue } : { value: remote.value };
  const owner = now('Runtime.evaluate', { expression: 'globalThis' }).result.objectId;
  const key = '__sandbox_value';
  now('Runtime.callFunctionOn', { objectId: owner, functionDeclaration: `function (value) { Object.defineProperty(this, '${key}', { value, configurable: true }); }`, arguments: [argument] });
  const value = globalThis[key];
  delete globalThis[key];
  return value;
}

/** Evaluate; SIGINT ends code that never returns to the event loop, and rejects what is awaited. */
function evaluate(code, name) {
  return new Promise((resolve, reject) => {
    running = () => reject(new Interrupted());
    globalThis.__sandbox_start = () => {
      delete globalThis.__sandbox_start;
      call('Runtime.evaluate', { expression: `${code.replace(CALLS_OF_IMPORT, (all, text) => text || '__sandbox_import')}\n//# sourceURL=${name}`, replMode: true, awaitPromise: true, objectGroup: 'cell', userGesture: true }).then(resolve, reject);
    };
    try {
      vm.runInThisContext('__sandbox_start()', { breakOnSigint: true });
    } catch (err) {
      reject(err.code === 'ERR_SCRIPT_EXECUTION_INTERRUPTED' ? new Interrupted() : err);
    }
  });
}

class Interrupted extends Error {}

async function run(request) {
  const began = process.hrtime.bigint();
  let reply;
  enough = false;
  number += 1;
  try {
    const name = `cell${number}`;
    const outcome = await evaluate('\n'.repeat(Math.max(0, (request.first_line || 1) - 1)) + request.code, name);
    reply = outcome.exceptionDetails ? failure(outcome.exceptionDetails, request) : shown(outcome.result, request);
  } catch (err) {
    reply = err instanceof Interrupted
      ? { status: 'error', exit: 1, name: 'KeyboardInterrupt', value: '', traceback: ['KeyboardInterrupt'] }
      : describe(err);
  }
  running = null;
  last = 1;
  now('Runtime.releaseObjectGroup', { objectGroup: 'cell' });
  return { op: 'done', ...reply, seconds: Number(process.hrtime.bigint() - began) / 1e9 };
}

function shown(result, request) {
  const quiet = /;\s*$/.test(request.code) && request.quiet;
  if (result.type !== 'undefined' && !quiet) {
    const value = valueOf(result);
    Object.defineProperty(globalThis, '_', { value, configurable: true, writable: true });
    post(bundleOf(value), {}, true);
  }
  return { status: 'ok', exit: 0, out: [] };
}

function failure(details) {
  if (!details.exception) return describe(new Error(details.text));
  return describe(valueOf(details.exception), details);
}

function describe(err, details) {
  if (!util.types.isNativeError(err)) {
    const text = util.inspect(err);
    return { status: 'error', exit: 1, name: 'Uncaught', value: text.split('\n')[0], traceback: [`Uncaught ${text}`] };
  }
  const lines = String(err.stack || err).split('\n');
  const own = lines.findIndex((line, place) => place > 0 && /\bnode:|runner\.js/.test(line));
  const kept = own > 0 ? lines.slice(0, own) : lines;
  if (err instanceof SyntaxError && details) kept.splice(1, kept.length, `    at cell${number}:${details.lineNumber + 1}:${details.columnNumber + 1}`);
  return { status: 'error', exit: 1, name: err.name || 'Error', value: String(err.message), traceback: kept };
}

// What the host asks for between cells

const NAME = /[\p{L}\p{N}_$]*$/u;
const PATH = /(?:([\p{L}_$][\p{L}\p{N}_$]*(?:\.[\p{L}_$][\p{L}\p{N}_$]*|\[\d+\])*)\.)?([\p{L}_$][\p{L}\p{N}_$]*)?$/u;
const WORDS = 'async await break case catch class const continue debugger default delete do else export extends false finally for function if import in instanceof let new null of return static super switch this throw true try typeof undefined var void while with yield'.split(' ');

function quietly(expression) {
  const { result, exceptionDetails } = now('Runtime.evaluate', { expression, throwOnSideEffect: true, timeout: 500, objectGroup: 'cell' });
  return result && !exceptionDetails ? { value: valueOf(result) } : null;
}

function namesOf(value) {
  const names = new Set();
  for (let each = Object(value); each; each = Object.getPrototypeOf(each)) for (const name of Object.getOwnPropertyNames(each)) if (/^[\p{L}_$][\p{L}\p{N}_$]*$/u.test(name)) names.add(name);
  return [...names];
}

function complete({ code }) {
  const module = /(?:require\(|from\s+|import\()\s*(['"])([\w@/.-]*)$/.exec(code);
  if (module) return { word: module[2], matches: require('module').builtinModules.filter((name) => name.startsWith(module[2]) && !name.startsWith('_')) };
  const [, owner, word = ''] = PATH.exec(code);
  if (!owner && /\.\s*[\w$]*$/.test(code) && !/\d\.$/.test(code)) return { word, matches: [] };
  const found = owner ? quietly(owner) : null;
  const names = owner
    ? found && found.value !== null && found.value !== undefined ? namesOf(found.value) : []
    : [...(now('Runtime.globalLexicalScopeNames').names || []), ...namesOf(globalThis), ...WORDS];
  const hidden = (name) => name.startsWith('__') && !word.startsWith('_');
  return { word, matches: [...new Set(names.filter((name) => name.startsWith(word) && !hidden(name)))].sort() };
}

function inspect({ code, detail }) {
  const found = code ? quietly(code) : null;
  if (!found) return { found: false };
  const { value } = found;
  const kind = typeof value === 'function' ? (/^class\b/.test(String(value)) ? 'class' : 'function') : value === null ? 'null' : typeof value;
  const lines = typeof value === 'function' ? String(value).split('\n') : util.inspect(value, { depth: detail ? 4 : 1 }).split('\n');
  return { found: true, text: `${code}: ${kind}\n\n${lines.slice(0, NEAR).join('\n')}` };
}

const INCOMPLETE = /Unexpected end of input|Unterminated template literal|missing \) after argument list/;

function parse({ code }) {
  try {
    new vm.Script(code, { filename: 'parse' });
    return { state: 'complete' };
  } catch (err) {
    const line = Number((/^parse:(\d+)/.exec(err.stack) || [])[1] || 0);
    if (INCOMPLETE.test(err.message)) return { state: line >= code.split('\n').length ? 'incomplete' : 'invalid' };
  }
  try { // `await` at the top is no script; nor is `return` one of ours, but nobody will call that incomplete
    new vm.Script(`(async () => {${code}\n})`, { filename: 'parse' });
    return { state: 'complete' };
  } catch (err) {
    return { state: 'invalid' };
  }
}

// Serving

/** What is left of signals that came late must not reach the next cell: those in the event loop (it sees in one round what a signal
 * wrote in the one before), and those that breakOnSigint counts and keeps for the next script when they came at the last one's end. */
async function settle() {
  for (let round = 0; round < 2; round++) await new Promise(setImmediate);
  const nothing = new Int32Array(new SharedArrayBuffer(4));
  globalThis.__sandbox_wait = () => Atomics.wait(nothing, 0, 0, SETTLE_MS);
  for (let quiet = false; !quiet; ) {
    try {
      quiet = Boolean(vm.runInThisContext('__sandbox_wait()', { breakOnSigint: true }));
    } catch (err) {
      quiet = err.code !== 'ERR_SCRIPT_EXECUTION_INTERRUPTED';
    }
  }
  delete globalThis.__sandbox_wait;
}

const OPERATIONS = {
  run: async (request) => {
    const reply = await run(request);
    send(reply);
    if (!request.keep) process.exit(reply.exit);
  },
  complete: (request) => send({ op: 'reply', ...complete(request) }),
  inspect: (request) => send({ op: 'reply', ...inspect(request) }),
  parse: (request) => send({ op: 'reply', ...parse(request) }),
  settle: async () => {
    await settle();
    send({ op: 'reply' });
  },
};

function serve() {
  const head = Buffer.alloc(HEAD);
  let have = 0;
  const more = () => fs.read(channel, head, have, HEAD - have, null, async (err, count) => {
    if (err || !count) process.exit(0);
    have += count;
    if (have < HEAD) return more();
    const request = restOf(head);
    if (OPERATIONS[request.op]) await OPERATIONS[request.op](request);
    return serve();
  });
  more();
}

function fatal(err) {
  process.stderr.write(`${(err && err.stack) || err}\n`);
}

setInterval(() => {}, 2 ** 30); // a promise that nothing will keep is waited for, too
process.argv.splice(1, 2);
process.on('SIGINT', () => { if (running) running(); });
process.on('uncaughtException', fatal); // of a timer or a stream, between or beside cells: the session goes on
process.on('unhandledRejection', fatal);
const exit = process.exit.bind(process);
process.exit = (code) => { if (running) send({ op: 'done', status: 'exit', exit: Number(code === undefined ? process.exitCode || 0 : code) & 255, last: true }); exit(code); };
inOrder(process.stdout, 1);
inOrder(process.stderr, 2);
for (const [name, value] of Object.entries({ __sandbox_import: makeImport(), require: createRequire(`${process.cwd()}/`), module: { exports: {} }, display, prompt })) {
  Object.defineProperty(globalThis, name, { value, configurable: true, writable: true, enumerable: false });
}
serve();
