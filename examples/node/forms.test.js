// Tests what the vectors don't reach: the reader's limits, whose answer a receipt is, and the
// registry's receipts and records.
import assert from 'node:assert/strict';
import {createHash} from 'node:crypto';
import {test} from 'node:test';

import {canonical, DOCUMENT, isInteger, parse} from './json.js';
import {isPublicKey, isSignature, SigningKey} from './keys.js';
import {answers, bindingRequest, isTarget, rotationRequest} from './requests.js';
import {Trust} from './trust.js';

const target = {app_id: 'org.example.shop', service_id: 'cms'};
const [registry, master, first, second] = Array.from({length: 4}, () => SigningKey.generate());
const trust = new Trust('example.org', [registry.publicKey]);
const read = (/** @type {string} */ text, limits = undefined) => parse(Buffer.from(text), limits);
const refused = (/** @type {string} */ reason) => ({reason});

/** Returns a message as the registry publishes it, or another signer that signs like it. */
function signed(/** @type {object} */ data, by = registry) {
  return Buffer.from(JSON.stringify({version: '1.0', data, signature: by.sign(canonical(data))}));
}

test('what is malformed', () => {
  for (const text of [
    '', '[]', '{}{}', '{"a":1', '{"a":1}x', '{"a":1,}', '{,}', '{"a"}', '{"a":}', '{"a":]}', '{"a" 1}', '{"a":1 "b":2}',
    '{1:2}', '{"a":01}', '{"a":1.}', '{"a":.5}', '{"a":+1}', '{"a":NaN}', '{"a":tru}', '{"a":truefalse}', '{"a":[1,]}',
    '\u00a0{}', '\ufeff{}', '{"a":"\t"}', '{"a":"\\x"}', '{"a":"\\u12"}', '{"a":"\\ud800"}', '{"\\udc00":1}',
    '{"a":1,"\\u0061":1}', '{"a":{"b":1,"b":1}}',
  ]) {
    assert.throws(() => read(text), refused('malformed_message'), text);
  }
  assert.throws(() => parse(Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])), refused('malformed_message'));
});

test('the limits of a message, which a document does not have (§3, §8)', () => {
  const deep = (/** @type {number} */ n) => `{"a":${'['.repeat(n - 1)}${']'.repeat(n - 1)}}`;
  read(deep(8));
  assert.throws(() => read(deep(9)), refused('malformed_message'));
  parse(Buffer.from(deep(9)), DOCUMENT);
  const large = (/** @type {number} */ n) => `{"a":"${'x'.repeat(n - 8)}"}`;
  read(large(8192));
  assert.throws(() => read(large(8193)), refused('malformed_message'));
  parse(Buffer.from(large(8193)), DOCUMENT);
});

test('numbers, and which of them are integers (§3)', () => {
  const {a} = read('{"a":[0,9007199254740991,-0,-1,3e2,300.0,1.5e-7]}');
  assert.deepEqual(a.map(isInteger), [true, true, false, false, false, false, false]);
  assert.equal(canonical(a).toString(), '[0,9007199254740991,0,-1,300,300,1.5e-7]');
  for (const text of ['{"a":9007199254740992}', '{"a":-9007199254740992}', '{"a":1e400}']) {
    assert.throws(() => read(text), refused('invalid_field'), text);
  }
});

test('names that mean something to JavaScript mean nothing here', () => {
  const text = '{"__proto__":{"version":"1.0"},"constructor":1,"toJSON":"x"}';
  assert.equal(read(text).version, undefined);
  assert.equal(canonical(read(text)).toString(), text);
});

test('forms (§1, §2)', () => {
  const {publicKey} = first;
  const signature = first.sign(Buffer.from('x'));
  assert.ok(isPublicKey(publicKey) && isSignature(signature));
  const bare = publicKey.slice('ed25519:'.length);
  for (const wrong of [`${publicKey}=`, `${publicKey}\n`, publicKey.slice(0, -1), bare, `x25519:${bare}`, 1]) {
    assert.ok(!isPublicKey(wrong), String(wrong));
  }
  const trailingBits = signature.slice(0, -1) + {A: 'B', Q: 'R', g: 'h', w: 'x'}[signature.slice(-1)];
  for (const wrong of [trailingBits, `${signature}==`, ` ${signature}`, '', undefined]) {
    assert.ok(!isSignature(wrong), String(wrong));
  }
  const label = 'x'.repeat(63);
  const labels = (/** @type {number} */ n, of = 'a') => Array(n).fill(of).join('.');
  assert.ok(isTarget({app_id: 'a.b', service_id: label}));
  assert.ok(isTarget({app_id: labels(16), service_id: 'b'}));
  for (const app_id of ['a', labels(17), labels(4, label), 'a.B', 'a.-b', 'a..b', 'a.b\n', `a.${label}x`]) {
    assert.ok(!isTarget({app_id, service_id: 'c'}), app_id);
  }
  for (const service_id of ['c.d', `${label}x`, '', 7]) {
    assert.ok(!isTarget({app_id: 'a.b', service_id}), String(service_id));
  }
});

test('a receipt answers the request that it is of, and no other (§7.3)', () => {
  const request = rotationRequest(target, {currentKey: first, newKey: second});
  const committed = {event: 'REQUEST_COMMITTED', request_nonce: request.nonce, public_key: second.publicKey};
  const hash = createHash('sha256').update(request.payload).digest('base64url');
  const rejected = {event: 'REQUEST_REJECTED', request_nonce: request.nonce, request_hash: hash};
  assert.ok(answers(committed, request));
  assert.ok(answers(rejected, request));
  assert.ok(!answers({...committed, request_nonce: 'another1'}, request));
  assert.ok(!answers({...committed, public_key: first.publicKey}, request), 'of another key with our nonce');
  const copied = rotationRequest(target, {currentKey: master, newKey: second, nonce: request.nonce});
  assert.ok(!answers(rejected, copied), "a stranger's copy with our nonce");
  assert.ok(!answers({...rejected, request_hash: undefined}, request), 'of bytes that are not named');
});

test('which receipts and records are believed (§7.2, §7.3, §8.1)', () => {
  const subject = 'omi.v1.receipts.org.example.shop.cms';
  const receipt = {
    origin: 'example.org', ...target, event: 'REQUEST_COMMITTED', request_nonce: 'm5n8b2v1', timestamp: 1705412610,
    nonce: 'n7b2v9x4', sequence: 2, public_key: first.publicKey, grace_period_expiry: 1705412910, event_nonce: 'q1w2e3r4',
  };
  assert.equal(trust.receipt(subject, signed({...receipt, more: [1.5]})).sequence, 2);
  assert.throws(() => trust.receipt(subject, signed(receipt, master)), refused('untrusted_signature'));
  assert.throws(() => trust.receipt(subject, signed({...receipt, origin: 'example.com'})), refused('wrong_origin'));
  assert.throws(() => trust.receipt(`${subject}2`, signed(receipt)), refused('target_mismatch'));
  assert.throws(() => trust.receipt(subject, signed({...receipt, event: 'constructor'})), refused('unknown_event'));
  assert.throws(() => trust.receipt(subject, signed({...receipt, sequence: 0})), refused('invalid_field'));
  const changed = JSON.parse(signed(receipt).toString());
  changed.data.sequence = 3;
  assert.throws(() => trust.receipt(subject, Buffer.from(JSON.stringify(changed))), refused('untrusted_signature'));

  const record = {
    origin: 'example.org', ...target, record: 'SERVICE', status: 'active', sequence: 1, bound_at: 1705412000,
    current: {public_key: first.publicKey, since: 1705412000}, grace: [], propagation: {}, timestamp: 1705412611,
  };
  assert.equal(trust.record(target, signed(record)).status, 'active');
  assert.equal(trust.record(target, signed({...record, next_rotation_at: 1705412671})).next_rotation_at, 1705412671);
  assert.throws(() => trust.record({...target, service_id: 'crm'}, signed(record)), refused('target_mismatch'));
  for (const wrong of [
    {record: 'HISTORY'}, {current: null}, {grace: [null]}, {propagation: []}, {status: 'gone'}, {next_rotation_at: ''},
  ]) {
    const document = signed({...record, ...wrong});
    assert.throws(() => trust.record(target, document), refused('invalid_field'), JSON.stringify(wrong));
  }
});

test('who says that a service was never bound (§8.1)', () => {
  const statement = {origin: 'example.org', ...target, record: 'UNBOUND', timestamp: 1705412611};
  const read = (/** @type {object} */ more, now = 1705412611, key = registry) =>
    trust.neverBound(target, signed({...statement, ...more}, key), now);
  assert.equal(read({}).timestamp, 1705412611);
  assert.throws(() => read({}, 1705412611, master), refused('untrusted_signature'));
  assert.throws(() => read({service_id: 'crm'}), refused('target_mismatch'));
  assert.throws(() => read({record: 'SERVICE'}), refused('invalid_field'));
  assert.throws(() => read({}, 1705412611 + 301), refused('timestamp_out_of_window'));
});

test('which events are believed (§7.1)', () => {
  const subject = 'omi.v1.invalidations.org.example.shop.cms';
  const [old_public_key, new_public_key] = [first.publicKey, second.publicKey];
  const common = {origin: 'example.org', ...target, timestamp: 1705412610, grace_period_expiry: 1705412610, nonce: 'n7b2v9x4'};
  const read = (/** @type {object} */ more) => trust.invalidation(subject, signed({...common, ...more}));
  const good = [
    {event: 'SERVICE_BINDING', new_public_key}, {event: 'SERVICE_REVOCATION', old_public_key},
    {event: 'MASTER_RESET', old_public_key, new_public_key},
    {event: 'KEY_ROTATION', old_public_key, new_public_key, grace_period_expiry: 1705412910},
    {event: 'KEY_ROTATION', old_public_key, new_public_key, end_earlier: true},
  ];
  for (const event of good) assert.equal(read(event).event, event.event);
  for (const wrong of [
    {...good[0], old_public_key}, {...good[1], new_public_key}, {...good[0], grace_period_expiry: 1705412611},
    {...good[3], grace_period_expiry: 1705412609}, {...good[3], app_id: 'org.example', service_id: 'shop.cms'},
    {...good[4], grace_period_expiry: 1705412910}, {...good[4], end_earlier: false}, {...good[2], end_earlier: true},
  ]) {
    assert.throws(() => read(wrong), refused('invalid_field'), JSON.stringify(wrong));
  }
  const both = new Trust('example.org', [master.publicKey, registry.publicKey]); // while the registry changes its own key
  assert.equal(both.invalidation(subject, signed({...common, ...good[0]})).event, 'SERVICE_BINDING');
});

test('a binding is signed by the Master Key, and proven by the new one (§5.2)', () => {
  const when = {timestamp: 1705412600, nonce: 'm5n8b2v1', origin: 'example.org'};
  const {subject, payload} = bindingRequest(target, {masterKey: master, newKey: first, ...when});
  const data = {...target, ...when, public_key: first.publicKey, context: 'service_binding'};
  assert.equal(subject, 'omi.v1.requests.binding.org.example.shop.cms');
  assert.deepEqual(JSON.parse(payload.toString()), {
    version: '1.0', data, signature: master.sign(canonical(data)), new_key_signature: first.sign(canonical(data)),
  });
});
