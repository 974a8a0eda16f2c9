#!/usr/bin/env node
// The command line of the example: flags, what a person reads, exit codes. The story itself is in
// rotate.js.
import {randomBytes} from 'node:crypto';
import {parseArgs} from 'node:util';

import {Client, Problem, Unreachable} from './client.js';
import {Refusal} from './json.js';
import {isPublicKey, SigningKey} from './keys.js';
import {dotted, isTarget} from './requests.js';
import {Story, Unexpected} from './rotate.js';

const HELP = `Usage: node main.js --app-id ID --master-key FILE [options]

Binds a new service of an app, rotates its key, and holds every answer against docs/protocol.md.

  --app-id ID         an app that the registry knows                     (OMI_APP_ID)
  --master-key FILE   its developer's Master Key, a PKCS #8 PEM file     (OMI_MASTER_KEY)
  --service-id ID     the service to bind; a new one each time           (OMI_SERVICE_ID)
  --nats-url URL      the NATS server; nats://127.0.0.1:4222             (OMI_NATS_URL)
  --trust KEY         the registry's public key, repeatable; without     (OMI_TRUST)
                      it, the registry is asked and believed
  --origin DOMAIN     the registry's domain name, which requests are     (OMI_ORIGIN)
                      signed for; without it, the registry is asked
  --timeout SECONDS   how long to wait for each answer; 10
  --json              print one JSON object
  --help              print this

Start \`go run ./cmd/omi dev\` in the repository's root, and then, here:
  npm ci
  node main.js --app-id org.example.dev --master-key ../../omi-data/master.pem

Exit codes: 0 done, 1 something is not as the protocol says, 2 usage, 3 unreachable.
`;

/** The command line is wrong. */
class Usage extends Error {}

async function main() {
  const flags = readFlags();
  if (flags.help) {
    process.stdout.write(HELP);
    return;
  }
  const {target, masterKey, timeout} = checked(flags);
  const say = (/** @type {string} */ step, /** @type {string} */ what) => {
    if (!flags.json) console.log(`${step.padEnd(10)}${printable(what)}`);
  };
  const client = await Client.connect(flags['nats-url'], timeout);
  try {
    const {origin, publicKeys} = await client.meetRegistry(flags.trust, flags.origin);
    say('registry', `${origin}, ${publicKeys.join(', ')}${flags.trust.length ? '' : ' (asked, and believed)'}`);
    say('service', dotted(target));
    const end = await new Story(client, target, origin, say).tell(masterKey);
    say('ok', `bound, rotated, verified: ${end.signatures_accepted} signatures, and Auth refused none`);
    if (flags.json) console.log(JSON.stringify({result: 'ok', origin, ...end}, null, 1));
  } finally {
    await client.close();
  }
}

function readFlags() {
  const {OMI_APP_ID = '', OMI_MASTER_KEY = '', OMI_SERVICE_ID, OMI_NATS_URL, OMI_TRUST, OMI_ORIGIN = ''} = process.env;
  try {
    return parseArgs({options: {
      'app-id': {type: 'string', default: OMI_APP_ID},
      'master-key': {type: 'string', default: OMI_MASTER_KEY},
      'service-id': {type: 'string', default: OMI_SERVICE_ID || `node-${randomBytes(4).toString('hex')}`},
      'nats-url': {type: 'string', default: OMI_NATS_URL || 'nats://127.0.0.1:4222'},
      'trust': {type: 'string', multiple: true, default: OMI_TRUST ? OMI_TRUST.split(',') : []},
      'origin': {type: 'string', default: OMI_ORIGIN},
      'timeout': {type: 'string', default: '10'},
      'json': {type: 'boolean', default: false},
      'help': {type: 'boolean', short: 'h', default: false},
    }}).values;
  } catch (cause) {
    throw new Usage(/** @type {Error} */ (cause).message);
  }
}

/**
 * Returns what the flags mean, without asking anyone.
 * @param {ReturnType<typeof readFlags>} flags
 */
function checked(flags) {
  const target = {app_id: flags['app-id'], service_id: flags['service-id']};
  const timeout = Number(flags.timeout) * 1000;
  if (!target.app_id) throw new Usage('--app-id is missing: which app is the service of?');
  if (!isTarget(target)) throw new Usage(`${dotted(target)} is no app id and service id, as docs/protocol.md §1 has them`);
  if (!flags['master-key']) throw new Usage('--master-key is missing: the app\'s developer has it');
  if (!(timeout > 0)) throw new Usage(`--timeout is a number of seconds, not ${flags.timeout}`);
  const wrong = flags.trust.find((key) => !isPublicKey(key));
  if (wrong !== undefined) throw new Usage(`--trust is ed25519: and 43 characters of base64url, not ${wrong}`);
  try {
    return {target, timeout, masterKey: SigningKey.read(flags['master-key'])};
  } catch (cause) {
    throw new Usage(`--master-key: ${/** @type {Error} */ (cause).message}`);
  }
}

main().catch((error) => {
  const [code, more] = explained(error);
  console.error(`example: ${printable(error.message)}${more}`);
  process.exitCode = code;
});

/**
 * Returns text from others as a line that a terminal shows and does not obey.
 * @param {string} text
 */
function printable(text) {
  return text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) => `\\u{${c.codePointAt(0)?.toString(16)}}`);
}

/**
 * Returns an error's exit code, and what to say in addition to its message.
 * @param {Error} error
 * @returns {[code: number, more: string]}
 */
function explained(error) {
  if (error instanceof Usage) return [2, '; see --help'];
  if (error instanceof Unreachable) return [3, error.cause instanceof Error ? ` (${printable(error.cause.message)})` : ''];
  if (error instanceof Unexpected || error instanceof Refusal || error instanceof Problem) return [1, ''];
  return [1, `\n${error.stack}`]; // a mistake of ours
}
