// Holds the example against testdata/vectors, which another implementation made: canonical form,
// keys, signatures, events.
import assert from 'node:assert/strict';
import {createHash, createPrivateKey} from 'node:crypto';
import {readdirSync, readFileSync} from 'node:fs';
import {test} from 'node:test';

import {canonical, parse, Refusal} from './json.js';
import {isPublicKey, SigningKey, verifies} from './keys.js';
import {rotationRequest} from './requests.js';
import {open, Trust} from './trust.js';

/** @typedef {any} Case of a file, or the file */

const FOLDER = new URL('../../testdata/vectors/', import.meta.url);
/** @type {Record<string, Case>} */
const files = Object.fromEntries(readdirSync(FOLDER).filter((name) => name.endsWith('.json'))
  .map((name) => [name, JSON.parse(readFileSync(new URL(name, FOLDER), 'utf8'))]));
const keys = Object.values(files).flatMap((file) => Object.entries(file.keys ?? {}));

test('vectors are there', () => {
  for (const list of ['keys', 'cases', 'state', 'events']) assert.ok(Object.values(files).some((file) => file[list]), list);
});

for (const [name, file] of Object.entries(files)) {
  const check = file.state ? checkRequest : checkCanonical;
  for (const c of file.cases ?? []) test(`${name}/${c.name}`, () => check(c, file));
  for (const c of file.events ?? []) test(`${name}/${c.name}`, () => checkEvent(c, file));
}

for (const [name, {seed, public_key}] of keys) {
  test(`keys/${name}`, () => {
    const [key, message] = [fromSeed(seed), Buffer.from('message')];
    assert.equal(key.publicKey, public_key);
    assert.ok(isPublicKey(public_key));
    assert.ok(verifies(public_key, message, key.sign(message)));
    assert.ok(!verifies(public_key, Buffer.from('massage'), key.sign(message)));
  });
}

test('the worked example (§9)', () => {
  const {'svc-2': current, 'new-proof': next} = Object.fromEntries(keys);
  const example = files['requests.json'].cases.find((/** @type {Case} */ c) => c.name === 'bound-with-proof');
  const got = rotationRequest({app_id: 'org.omiappreg.alice.business_app.7f8a9d', service_id: 'cms-article-77'}, {
    currentKey: fromSeed(current.seed), newKey: fromSeed(next.seed), timestamp: 1705412600, nonce: 'hTqx4sRKUuRySwyl3WIjXQ',
  });
  assert.equal(got.subject, example.subject);
  assert.deepEqual(JSON.parse(got.payload.toString()), JSON.parse(example.message));
});

/** @param {Case} c */
function checkCanonical({input, canonical: want, sha256}) {
  for (const text of [input, want, ` \t\r\n${input}\n`]) {
    assert.equal(canonical(JSON.parse(text)).toString(), want);
    // RFC 8785 has larger numbers than §3 lets a message have.
    const read = () => parse(Buffer.from(text));
    if (reasonOf(read) !== 'invalid_field') assert.equal(canonical(read()).toString(), want);
  }
  assert.equal(createHash('sha256').update(canonical(JSON.parse(input))).digest('hex'), sha256);
}

/** @param {Case} c @param {Case} file */
function checkEvent(c, {origin, trusted_registry_keys}) {
  const trust = new Trust(origin, trusted_registry_keys);
  const reason = reasonOf(() => trust.invalidation(c.subject, bytesOf(c)));
  assert.equal(reason ? 'rejected' : 'applied', c.expect, reason);
}

/**
 * What a client can tell of a request: whether it is one, and who signed it. The rest depends on
 * what the registry knows.
 * @param {Case} c
 * @param {Case} file
 */
function checkRequest(c, {state}) {
  const reason = reasonOf(() => open(bytesOf(c)));
  if (['malformed_message', 'unsupported_version'].includes(c.expect)) return assert.equal(reason, c.expect);
  assert.ok(['', c.expect].includes(reason), `${reason}, where ${c.expect} is expected`);
  if (c.expect === 'invalid_field') return checkField(c, reason);
  if (['target_mismatch', 'unknown_app', 'unknown_service'].includes(c.expect)) return undefined; // whose signature?

  const {data, signature, others} = open(bytesOf(c));
  const {current, before} = signersOf(c.subject, state);
  const signer = [current, ...before].find((key) => verifies(key, canonical(data), signature));
  if (c.expect === 'invalid_signature') return assert.equal(signer, undefined);
  if (c.expect === 'superseded_key') return assert.ok(before.includes(signer ?? ''));
  assert.ok(signer === current || c.expect === 'duplicate', `signed by ${signer}`);
  // Ed25519 is deterministic: signing the same data with the same key always gives the same
  // signature.
  const [, {seed}] = keys.find(([, key]) => key.public_key === signer) ?? assert.fail('the signer is not among the keys');
  assert.equal(fromSeed(seed).sign(canonical(data)), signature);
  if (others.new_key_signature === undefined) return undefined;
  const proof = verifies(data.new_public_key ?? data.public_key, canonical(data), others.new_key_signature);
  return assert.equal(proof, c.expect !== 'invalid_proof');
}

/**
 * Of the members that a client reads as well as writes.
 * @param {Case} c
 * @param {string} reason
 */
function checkField(c, reason) {
  if (c.name.startsWith('signature-')) assert.equal(reason, 'invalid_field');
  if (c.name.startsWith('key-')) assert.ok(!isPublicKey(open(bytesOf(c)).data.new_public_key));
}

/**
 * The keys that may sign a request (§5), and those that once might: the service's for a rotation,
 * else the developer's.
 * @param {string} subject
 * @param {Case} state
 * @returns {{current: string, before: string[]}}
 */
function signersOf(subject, {apps, services}) {
  const [, kind, target] = /^omi\.v1\.requests\.(\w+)\.(.*)$/.exec(subject) ?? assert.fail(subject);
  const app = apps.find((/** @type {Case} */ a) => target.startsWith(`${a.app_id}.`));
  if (kind !== 'rotation') return {current: app.master_public_key, before: []};
  const service = services.find((/** @type {Case} */ s) => target === `${s.app_id}.${s.service_id}`);
  const before = service.keys.map((/** @type {Case} */ key) => key.public_key);
  return {current: before.pop(), before}; // they are in order
}

/**
 * The key that a seed makes: PKCS #8 is 16 bytes (RFC 8410), and then the seed.
 * @param {string} seed in hex
 */
function fromSeed(seed) {
  const der = Buffer.from(`302e020100300506032b657004220420${seed}`, 'hex');
  return new SigningKey(createPrivateKey({key: der, format: 'der', type: 'pkcs8'}));
}

/** @param {Case} c */
function bytesOf({message, message_base64}) {
  return message === undefined ? Buffer.from(message_base64, 'base64') : Buffer.from(message);
}

/** The reason for which run refuses, or '' where it does not. @param {() => unknown} run */
function reasonOf(run) {
  try {
    run();
    return '';
  } catch (error) {
    if (error instanceof Refusal) return error.reason;
    throw error;
  }
}
